"""The engine server as the door sees it: connections, whether it can be asked, what it has been asked.

Holds no request; what a response means is `completions.py`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import orjson

from largeforge.errors import ServeError
from largeforge.serve.supervising import EngineServer, answers

log = logging.getLogger("largeforge.serve")
LOOK_S = 2.0  # between two looks at a server elsewhere
LOOK_TIMEOUT_S = 5.0  # for one look
ELSEWHERE_AGAIN_S = 2.0  # longest wait for one that does not answer: nobody here starts it
AGAIN_S = 60.0  # longest wait for an engine that is being started again
PROBE_S = 0.05
CONNECT_S = 10.0
UNTIL_IT_ENDS = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
LARGEST_LINE = 2**20


class Upstream:
    """Where requests go: a child that answers, or a server that stands elsewhere and is looked at every other second.

    Args:
        server: the child; None where it stands elsewhere.
        url: of a server that stands elsewhere, with /v1 or what it has instead.
        key: what it asks for.
        names: what models are called here, the main one first; empty takes those that it lists, whenever it lists others.
        model: what the main one is called there; "" is the first that it lists, and the others are there too.
    """

    def __init__(self, *, server: EngineServer | None = None, url: str = "", key: str = "", names: Sequence[str] = (), model: str = "") -> None:
        self.server = server
        self._url = url
        self.names = list(names)
        self.model = model
        self._given = list(names)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None
        self._healing: asyncio.Task[bool] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._latency_ms: float | None = None  # of the last look elsewhere; None where nobody answered
        self._why = self._first = ""

    @property
    def url(self) -> str:
        """Where it is asked now: another port after each restart."""
        return self.server.url if self.server is not None else self._url

    @property
    def ready(self) -> bool:
        """Whether it was up when last seen."""
        return self.server.ready.is_set() if self.server is not None else self._latency_ms is not None

    @property
    def lost(self) -> str:
        """What a client is told while it cannot be asked."""
        return "The engine cannot be reached; it is started again." if self.server is not None else f"The engine at {self._url} cannot be reached."

    async def open(self) -> None:
        """Make connections possible."""
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=60),
            timeout=UNTIL_IT_ENDS,
            auto_decompress=True,
            read_bufsize=LARGEST_LINE,
        )

    async def find(self, seconds: float) -> None:
        """Wait until a server that stands elsewhere answers, then look at it every other second. Raises ServeError where it does not in time."""
        until = time.monotonic() + seconds
        while not await self._look():
            if time.monotonic() > until:
                raise ServeError(
                    f"The engine server at {self._url} does not answer: {self._why}.", next_step="see that it runs, that the URL is its, and its key"
                )
            await asyncio.sleep(0.5)
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        was_up = True
        while True:
            await asyncio.sleep(LOOK_S)
            up = await self._look()
            if up != was_up:
                log.warning("the engine at %s %s", self._url, "answers again" if up else f"cannot be reached: {self._why}")
            was_up = up

    async def _look(self) -> bool:
        """Ask a server elsewhere what models it has; whether it said so."""
        start = time.perf_counter()
        try:
            found = await self.get("/v1/models", timeout_s=LOOK_TIMEOUT_S)
            listed = [str(one["id"]) for one in found["data"]]
            if not listed:
                raise ValueError("it lists no model")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError, TypeError) as fault:
            self._latency_ms, self._why = None, _told(fault)
            return False
        if not self._given:
            self.names = listed
        elif not self.model or self.model == self._first:
            self._first = self.model = listed[0]
            self.names = [self._given[0], *(name for name in listed[1:] if name != self._given[0])]
        self._latency_ms = (time.perf_counter() - start) * 1000
        return True

    async def close(self) -> None:
        """Close connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        if self._session is not None:
            await self._session.close()

    def post(self, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float | None = None) -> Any:
        """A request on its way: `async with upstream.post(...) as response`."""
        assert self._session is not None
        timeout = UNTIL_IT_ENDS if timeout_s is None else aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        return self._session.post(self._of(path), data=body, headers={"Content-Type": "application/json", **headers}, timeout=timeout)

    async def get(self, path: str, timeout_s: float = 10.0) -> Any:
        """The JSON of a GET. Raises what aiohttp raises, ValueError."""
        assert self._session is not None
        async with self._session.get(self._of(path), timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
            response.raise_for_status()
            return orjson.loads(await response.read())

    def _of(self, path: str) -> str:
        """Where a path stands: elsewhere, the URL says what /v1 is."""
        return self._url + path.removeprefix("/v1") if self.server is None else self.url + path

    async def ask(self, path: str, body: dict[str, Any], timeout_s: float = 600.0) -> Any:
        """The JSON of a POST. Raises what aiohttp raises, ValueError."""
        assert self._session is not None
        async with self._session.post(self.url + path, json=body, timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
            response.raise_for_status()
            return orjson.loads(await response.read())

    async def latency_ms(self) -> float | None:
        """Milliseconds of its own health check; None where it does not answer."""
        if self.server is None:
            return self._latency_ms
        assert self._session is not None
        start = time.perf_counter()
        try:
            if self.ready and await asyncio.wait_for(answers(self._session, self.url + "/health"), LOOK_TIMEOUT_S):
                return (time.perf_counter() - start) * 1000
        except asyncio.TimeoutError:  # it hangs: whoever supervises it ends it in time
            pass
        return None

    async def again(self) -> bool:
        """Wait until a server that did not answer can be asked again; False where it cannot in time. All who wait share one look."""
        if self._healing is None or self._healing.done():
            self._healing = asyncio.ensure_future(self._heal())
        return await asyncio.shield(self._healing)

    async def _heal(self) -> bool:
        until = time.monotonic() + (AGAIN_S if self.server is not None else ELSEWHERE_AGAIN_S)
        while time.monotonic() < until:
            if await (self._look() if self.server is None else self.latency_ms()):
                return True
            await asyncio.sleep(PROBE_S)
        return False


def _told(fault: Exception) -> str:
    """Why a server did not answer, for a person."""
    if isinstance(fault, aiohttp.ClientResponseError):
        return f"it said {fault.status}" + (", a key is asked for" if fault.status in (401, 403) else "")
    if isinstance(fault, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({fault.certificate_error})"
    if isinstance(fault, aiohttp.ClientConnectorError):
        return f"nobody listens there ({fault.os_error.strerror or 'no connection'})"
    return str(fault) or type(fault).__name__
