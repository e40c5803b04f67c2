"""How often the owner of a key may ask: requests and tokens a minute, told as OpenAI tells them.

Knows nothing about who asks beyond `Call.owner`. Its state lives in this process: several doors each count for themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from largeforge.asgi import App, Message, Receive, Scope, Send, refuse
from largeforge.call import GENERATING, Call, call_of
from largeforge.guard.config import RateConfig

FORGET_EVERY_S = 60.0
ALMOST = 1e-9


class Rate:
    """A token bucket for each owner and each limit; a full one holds a minute's worth, which may be spent at once.

    A request is paid when it comes. Tokens are paid when its answer has ended (also where it was broken off), as the engine counted them:
    an owner is let in while anything is left, so that what runs at once may overdraw, and waits for it afterwards.
    A request that a guard further in refuses has been paid all the same.

    Args:
        config: of this guard.
        app: what stands inside.
        clock: monotonic seconds.
    """

    def __init__(self, config: RateConfig, *, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.app = app
        self.clock = clock
        self._requests: dict[str, _Bucket] = {}
        self._tokens: dict[str, _Bucket] = {}
        self._forgot_at = clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GENERATING or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        call = call_of(scope)
        max_requests, max_tokens = self._limits(call)
        if max_requests is None and max_tokens is None:
            await self.app(scope, receive, send)
            return
        now = self.clock()
        self._forget(now)
        requests, tokens = self._bucket(self._requests, call.owner, max_requests, now), self._bucket(self._tokens, call.owner, max_tokens, now)
        wait_s, what = 0, ""
        if requests is not None and (wait_s := requests.seconds_until(1.0)):
            what = f"{max_requests} requests"
        if tokens is not None and (tokens_wait_s := tokens.seconds_until_any()) > wait_s:
            wait_s, what = tokens_wait_s, f"{max_tokens} tokens"
        if not wait_s and requests is not None:
            requests.balance -= 1.0
        told = [*_told(b"requests", requests), *_told(b"tokens", tokens)]
        if wait_s:
            text = f"The limit of {what} a minute is reached. Try again in {wait_s} seconds."
            headers = {"Retry-After": str(wait_s), **{name.decode(): value.decode() for name, value in told}}
            await refuse(scope, receive, send, 429, text, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            spent = call.prompt_tokens + call.completion_tokens
            if spent and max_tokens is not None and (paying := self._bucket(self._tokens, call.owner, max_tokens, self.clock())) is not None:
                paying.balance -= spent

    @property
    def num_remembered(self) -> int:
        """Buckets that are not known to be full."""
        return len(self._requests) + len(self._tokens)

    def _limits(self, call: Call) -> tuple[int | None, int | None]:
        requests, tokens = self.config.requests_per_minute, self.config.tokens_per_minute
        if call.key is not None:
            requests = call.key.requests_per_minute if call.key.requests_per_minute is not None else requests
            tokens = call.key.tokens_per_minute if call.key.tokens_per_minute is not None else tokens
        return requests, tokens

    def _bucket(self, buckets: dict[str, _Bucket], owner: str, limit: int | None, now: float) -> _Bucket | None:
        if limit is None:
            return None
        bucket = buckets.get(owner)
        if bucket is None:
            bucket = buckets[owner] = _Bucket(limit, now)
        bucket.fill(limit, now)
        return bucket

    def _forget(self, now: float) -> None:
        """Drop owners that have everything again: they are as good as new."""
        if now - self._forgot_at < FORGET_EVERY_S:
            return
        self._forgot_at = now
        for buckets in (self._requests, self._tokens):
            for owner, bucket in list(buckets.items()):
                bucket.fill(bucket.limit, now)
                if bucket.balance >= bucket.limit:
                    del buckets[owner]


class _Bucket:
    """What an owner has left of a limit a minute; below zero where it is overdrawn."""

    __slots__ = ("at", "balance", "limit")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.balance = float(limit)
        self.at = now

    def fill(self, limit: int, now: float) -> None:
        """Add what the time has brought; the limit may be another one than before."""
        self.limit = limit
        self.balance = min(float(limit), self.balance + max(0.0, now - self.at) * limit / 60.0)
        self.at = now

    def seconds_until(self, wanted: float) -> int:
        """Whole seconds until so much is there; 0 is now."""
        missing = wanted - self.balance - ALMOST
        return math.ceil(missing * 60.0 / self.limit) if missing > 0 else 0

    def seconds_until_any(self) -> int:
        """Whole seconds until more than nothing is there; 0 is now."""
        return 0 if self.balance > ALMOST else math.floor((ALMOST - self.balance) * 60.0 / self.limit) + 1


def _told(what: bytes, bucket: _Bucket | None) -> list[tuple[bytes, bytes]]:
    """OpenAI's headers of one limit."""
    if bucket is None:
        return []
    full_s = max(0.0, bucket.limit - bucket.balance) * 60.0 / bucket.limit
    return [
        (b"x-ratelimit-limit-" + what, b"%d" % bucket.limit),
        (b"x-ratelimit-remaining-" + what, b"%d" % max(0, math.floor(bucket.balance + ALMOST))),
        (b"x-ratelimit-reset-" + what, b"%dms" % round(1000 * full_s) if full_s < 1 else b"%.2fs" % full_s),
    ]
