"""remote: any server that speaks OpenAI's chat completions, asked politely: paced, retried, within a budget.

Knows the wire through `completions.py`; knows nothing about who asks or what for. The key is in no error, log or name.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp

from largeforge.chat import Answer, ChatRequest, Delta, Load
from largeforge.engine.answers import ShutOut, every_answer, stream
from largeforge.engine.completions import BrokenOff, answer_of, base_url, body_of, complaint, deltas_of, estimated_tokens, first_model, retry_after, shown_url
from largeforge.engine.config import RemoteConfig
from largeforge.engine.limits import Budget, Pace
from largeforge.errors import EngineError, InputError

if TYPE_CHECKING:
    from largeforge.contract import LoadedModel, Progress

log = logging.getLogger("largeforge.engine")
FIRST_WAIT_S = 0.5  # before the first retry; doubled before each further one
LONGEST_WAIT_S = 30.0
LONGEST_RETRY_AFTER_S = 300.0  # who asks to wait longer is taken for unreachable
MASK = "**********"


class Passing(Exception):
    """Something that may pass by itself: worth another try, not before `after_s` where the server said so."""

    def __init__(self, message: str, *, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass
class _Try:
    """A good response, and what its answer took."""

    response: aiohttp.ClientResponse
    used_tokens: int = 0


class Remote:
    """Asks a server.

    Args:
        config: where it stands, and how politely it is asked.
        model: not used; every engine is given it.
        progress: not used.
        device: not used.

    Raises:
        InputError: the URL or the key cannot be one.
    """

    needs_model: ClassVar[bool] = False

    def __init__(self, config: RemoteConfig, *, model: LoadedModel | None = None, progress: Progress | None = None, device: str | None = None) -> None:
        self.config = config
        self.url = base_url(config.url)
        self.name = f"{config.model} at {shown_url(self.url)}" if config.model else shown_url(self.url)
        self.in_flight = config.in_flight
        self.budget = Budget(config.budget)
        self.requests = Pace(config.requests_per_minute)
        self.tokens = Pace(config.tokens_per_minute)
        self._key = config.api_key.get_secret_value().strip() if config.api_key is not None else ""
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(
                "engine.api_key holds letters that no key has (line breaks, or others than ASCII).", next_step="LARGEFORGE_ENGINE__API_KEY=<the key>"
            )
        self._jitter = random.Random()
        self._troubled = False
        self._model = config.model
        self._session: aiohttp.ClientSession | None = None
        self._naming: asyncio.Lock | None = None

    async def answer(self, request: ChatRequest) -> Answer:
        """Ask for one whole answer at once; one that breaks off is asked again. Raises EngineError."""
        tries = 0
        while True:
            try:
                async with self._asking(request, streaming=False) as one:
                    found = answer_of(await body_of(one.response), who=self.name)
                    one.used_tokens = found.usage.total_tokens
                    return found
            except Passing as fault:
                tries += 1
                await self._patience(fault, tries)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Ask for one answer as a stream; once something was said it is not asked again. Raises EngineError."""
        tries, said = 0, False
        while True:
            try:
                async with self._asking(request, streaming=True) as one:
                    async for delta in deltas_of(one.response, who=self.name):
                        said = said or bool(delta.text)
                        one.used_tokens = delta.usage.total_tokens if delta.usage is not None else 0
                        yield delta
                return
            except Passing as fault:
                if said:
                    raise EngineError(f"{self.name} broke off in the middle of an answer: {fault}.", reason="unreachable") from fault
                tries += 1
                await self._patience(fault, tries)

    def load(self) -> Load:
        """Nothing is known of a server elsewhere but what it answers."""
        return Load()

    async def close(self) -> None:
        """Close connections; the next request opens new ones, in whatever event loop runs then."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        """Answer in the order asked. Raises EngineError for the first that cannot be had."""
        return every_answer(self, requests, in_flight=self.in_flight)

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Answer one request as it comes. Raises EngineError."""
        return stream(self, request)

    # ---- one try ----

    @asynccontextmanager
    async def _asking(self, request: ChatRequest, *, streaming: bool) -> AsyncIterator[_Try]:
        """Send a request when the pace allows it; reserved tokens that were not used are given back."""
        model = await self._model_name()
        reserved = estimated_tokens(request)
        await self.tokens.wait(reserved)
        used_tokens = 0
        try:
            async with self._exchange("POST", "/chat/completions", payload=_payload(request, model, streaming=streaming), streaming=streaming) as response:
                one = _Try(response)
                try:
                    yield one
                finally:
                    used_tokens = one.used_tokens
        finally:
            self.tokens.settle(used_tokens - reserved)

    async def _model_name(self) -> str:
        self._connections()
        assert self._naming is not None
        async with self._naming:
            if self._model is None:
                async with self._exchange("GET", "/models", streaming=False) as response:
                    self._model = first_model(await body_of(response), who=self.name)
        return self._model

    @asynccontextmanager
    async def _exchange(self, method: str, path: str, *, streaming: bool, payload: dict[str, Any] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; yields the response where it is a good one.

        Raises:
            Passing: nobody there, too slow, broken off, busy, or at fault.
            EngineError: refused.
        """
        await self.requests.wait()
        seconds = self.config.timeout_s
        timeout = aiohttp.ClientTimeout(total=None if streaming else seconds, sock_read=seconds, sock_connect=min(seconds, 30))
        try:
            async with self._connections().request(method, self.url + path, json=payload, timeout=timeout, allow_redirects=False) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                self._troubled = False
                yield response
        except asyncio.TimeoutError as fault:
            raise Passing(f"no answer within {seconds:g} s") from fault
        except (aiohttp.ClientError, OSError, BrokenOff) as fault:
            raise Passing(self._masked(str(fault) or type(fault).__name__)) from fault
        except EngineError as fault:
            fault.message = self._masked(fault.message)  # a server may say anything, the key too
            raise

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._session = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0))
            self._naming = asyncio.Lock()
        return self._session

    async def _refusal(self, response: aiohttp.ClientResponse) -> Exception:
        """What a response that is no answer means."""
        status, said = response.status, self._masked(complaint(await body_of(response)))
        told = f"{self.name} answered {status}{f': {said}' if said else ''}"
        if status == 429 or status == 408 or status >= 500:
            return Passing(f"status {status}{f' ({said})' if said else ''}", after_s=retry_after(response.headers))
        if status in (401, 403):
            return ShutOut(f"{told}.", reason="refused", next_step="LARGEFORGE_ENGINE__API_KEY=<a key that may ask there>")
        if status in (404, 405) or 300 <= status < 400:
            return ShutOut(f"{told}.", reason="refused", next_step=f"engine.url=<where {self.url}/chat/completions answers> engine.model=<a model it has>")
        return EngineError(f"{told}.", reason="refused")

    def _masked(self, text: str) -> str:
        return text.replace(self._key, MASK) if self._key else text

    # ---- the next try ----

    async def _patience(self, fault: Passing, tries: int) -> None:
        """Wait before the next try; everybody waits where the server said how long. Raises EngineError where it was the last."""
        times = f"asked {tries} times" if tries > 1 else "asked once"
        if tries > self.config.retries:
            raise EngineError(f"{self.name} gives no answer ({fault}; {times}).", next_step="see that it runs, then the same command again") from fault
        if fault.after_s > LONGEST_RETRY_AFTER_S:
            raise EngineError(f"{self.name} asks to come back in {fault.after_s:.0f} s ({fault}; {times}).") from fault
        longest = min(FIRST_WAIT_S * 2 ** (tries - 1), LONGEST_WAIT_S)
        seconds = fault.after_s + longest * self._jitter.uniform(0.5, 1.0)  # never all at the same moment
        if fault.after_s:
            self.requests.hold(fault.after_s)
        # the first of a row is for the user, who would wait and not know why; the rest is for the log
        log.log(
            logging.INFO if self._troubled else logging.WARNING, "%s: %s; again in %.1f s (%d of %d)", self.name, fault, seconds, tries, self.config.retries
        )
        self._troubled = True
        await asyncio.sleep(seconds)


def _payload(request: ChatRequest, model: str, *, streaming: bool) -> dict[str, Any]:
    """What is sent. Raises EngineError for what this engine does not ask of a server."""
    for field in ("prompt", "logprobs", "ignore_end"):
        if getattr(request, field) != getattr(ChatRequest, field):
            raise EngineError(f"engine=remote asks for no {field}.", reason="refused", next_step="engine=hf")
    payload: dict[str, Any] = {
        "model": request.adapter or model,
        "messages": [message.as_dict() for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    if request.top_k:
        payload["top_k"] = request.top_k
    if request.stop:
        payload["stop"] = list(request.stop)
    if request.frequency_penalty:
        payload["frequency_penalty"] = request.frequency_penalty
    if request.presence_penalty:
        payload["presence_penalty"] = request.presence_penalty
    if request.schema:
        payload["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(request.schema)}}
    if streaming:
        payload |= {"stream": True, "stream_options": {"include_usage": True}}
    return payload
