"""How many requests are answered at once; the others wait in a queue with an end. The order is `guard.turns`'s.

Counts what generates only. A WebSocket is let in, for its messages come through here again; it is refused only while draining.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Callable

from largeforge.asgi import App, Message, Receive, Scope, Send, header, refuse
from largeforge.call import GENERATING, Call, call_of
from largeforge.guard.config import ConcurrencyConfig
from largeforge.guard.outcome import CLIENT_LEFT
from largeforge.guard.turns import NoPlace, Place, Turns

ASKED = re.compile(r"[+-]?[0-9]{1,3}")
MAX_PRIORITY = 100
MAX_RETRY_S = 60
NEWEST = 0.1  # how much the newest request weighs in the mean time that one takes

REFUSED = {
    "draining": (503, "The server is stopping and takes no more requests.", "server_error"),
    "queue_full": (503, "Too many requests are waiting.", "overloaded_error"),
    "queue_full_for_key": (429, "Too many requests of this key are waiting.", "rate_limit_error"),
}


class Concurrency:
    """Takes a place for a request, or has it wait for one, and gives the place back whatever happens.

    A client that goes away while it waits leaves the queue at once. A key has a priority; the header X-Priority (a whole number between
    -100 and 100) may lower it for a request, never raise it. What waits when `drain` is called is still answered.

    Args:
        config: of this guard.
        app: what stands inside. The guard outside has to give the whole body in one message, and after that only http.disconnect.
        clock: monotonic seconds, by which waiting raises a priority.
    """

    def __init__(self, config: ConcurrencyConfig, *, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.app = app
        self.turns = Turns(
            max_active=config.max_active,
            max_waiting=config.max_waiting,
            max_waiting_per_owner=config.max_waiting_per_key,
            ageing_s=config.ageing_s,
            fair=config.fair,
            priorities=config.priorities,
            clock=clock,
        )
        self._mean_s = 1.0

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return self.turns.active

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self.turns.waiting

    def drain(self) -> None:
        """Refuse whatever comes from now on; what is there goes on."""
        self.turns.closed = True

    async def empty(self) -> None:
        """Return once nothing is being answered and nothing waits."""
        await self.turns.empty()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "websocket" and self.turns.closed:
            await self._refuse(scope, receive, send, "draining")
            return
        if kind != "http" or scope["path"] not in GENERATING or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        call = call_of(scope)
        priority = call.key.priority if call.key is not None else 0
        if self.config.priorities and (asked := header(scope, b"x-priority")) is not None:
            if not ASKED.fullmatch(asked) or abs(int(asked)) > MAX_PRIORITY:
                text = f"X-Priority has to be a whole number between -{MAX_PRIORITY} and {MAX_PRIORITY}."
                await refuse(scope, receive, send, 400, text, kind="invalid_request_error", code="invalid_header")
                return
            priority = min(priority, int(asked))
        try:
            place = self.turns.ask(call.owner, priority)
        except NoPlace as full:
            await self._refuse(scope, receive, send, full.reason)
            return
        began: float | None = None
        try:
            if place.turn is not None:
                held: deque[Message] = deque()
                came = await self._wait(place, place.turn, receive, held, call)
                if not came:
                    if call.status != CLIENT_LEFT:
                        self.turns.leave(place)
                        text = f"No place became free within {self.config.max_wait_s:g} seconds."
                        await refuse(scope, receive, send, 503, text, kind="overloaded_error", code="waited_too_long", headers=self._retry_after())
                    return
                receive = _again(held, receive)
            began = time.monotonic()
            await self.app(scope, receive, send)
        finally:
            self.turns.leave(place)
            if began is not None:
                self._mean_s += NEWEST * (time.monotonic() - began - self._mean_s)

    async def _wait(self, place: Place, turn: asyncio.Future[None], receive: Receive, held: deque[Message], call: Call) -> bool:
        """Return whether the turn came; not where the client left (the call says so) or the time was up."""
        listener = asyncio.ensure_future(_hold(receive, held))
        asked_at = time.monotonic()
        try:
            await asyncio.wait({turn, listener}, timeout=self.config.max_wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.queued_s += time.monotonic() - asked_at
            listener.cancel()
        if not listener.done():
            await asyncio.wait({listener})  # two must not receive at once
        if not listener.cancelled():
            listener.result()  # raises what `receive` raised
            call.status = CLIENT_LEFT
            return False
        return place.state == "active"

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, reason: str) -> None:
        status, text, kind = REFUSED[reason]
        await refuse(scope, receive, send, status, text, kind=kind, code=reason, headers=self._retry_after())

    def _retry_after(self) -> dict[str, str]:
        """When a place is likely to be free for one more: as long as those who wait will take, by what the last ones took."""
        seconds = math.ceil((self.turns.waiting + 1) * self._mean_s / self.config.max_active)
        return {"Retry-After": str(min(max(seconds, 1), MAX_RETRY_S))}


async def _hold(receive: Receive, held: deque[Message]) -> None:
    """Keep what comes until the client is gone."""
    while True:
        message = await receive()
        held.append(message)
        if message["type"] == "http.disconnect":
            return


def _again(held: deque[Message], receive: Receive) -> Receive:
    """Give what was kept first, then what comes."""

    async def replay() -> Message:
        return held.popleft() if held else await receive()

    return replay
