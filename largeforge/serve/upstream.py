"""The engine server as the door sees it: connections, whether it can be asked, what it has been asked.

Holds no request; what a response means is `completions.py`'s business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from largeforge.errors import ServeError
from largeforge.serve.supervising import EngineServer, answers

AGAIN_S = 60.0  # longest wait for an engine that is being started again
PROBE_S = 0.05
LARGEST_LINE = 2**20


class Upstream:
    """Where requests go.

    Args:
        server: the child that answers; None where it stands elsewhere.
        url: of a server that stands elsewhere.
        key: what it asks for.
        names: models that it has, the main one first; empty asks it.
        model: what the main one is called there, if not as here.
        ready_path: answers 200 while it can be asked; "" asks nothing.
    """

    def __init__(
        self, *, server: EngineServer | None = None, url: str = "", key: str = "", names: Sequence[str] = (), model: str = "", ready_path: str = "/health"
    ) -> None:
        self.server = server
        self._url = url
        self.names = list(names)
        self.model = model
        self.ready_path = ready_path
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None
        self._healing: asyncio.Task[bool] | None = None

    @property
    def url(self) -> str:
        """Where it is asked now: another port after each restart."""
        return self.server.url if self.server is not None else self._url

    @property
    def ready(self) -> bool:
        """Whether it was up when last seen."""
        return self.server is None or self.server.ready.is_set()

    async def open(self) -> None:
        """Make connections possible; learn the models' names where nobody said them. Raises ServeError."""
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=True,
            read_bufsize=LARGEST_LINE,
        )
        if self.names:
            return
        try:
            found = await self.get("/v1/models")
            self.names = [str(one["id"]) for one in found["data"]]
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError, TypeError) as fault:
            raise ServeError(f"{self.url} lists no models: {fault or type(fault).__name__}.", next_step="see that it runs, and its key") from fault
        if not self.names:
            raise ServeError(f"{self.url} lists no model.", next_step="engine.model=<its name there>")

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Any:
        """A request on its way: `async with upstream.post(...) as response`."""
        assert self._session is not None
        return self._session.post(self.url + path, data=body, headers={"Content-Type": "application/json", **headers})

    async def get(self, path: str, timeout_s: float = 10.0) -> Any:
        """The JSON of a GET. Raises what aiohttp raises, ValueError."""
        assert self._session is not None
        async with self._session.get(self.url + path, timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
            response.raise_for_status()
            return orjson.loads(await response.read())

    async def ask(self, path: str, body: dict[str, Any], timeout_s: float = 60.0) -> Any:
        """The JSON of a POST. Raises what aiohttp raises, ValueError."""
        assert self._session is not None
        async with self._session.post(self.url + path, json=body, timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
            response.raise_for_status()
            return orjson.loads(await response.read())

    async def latency_ms(self) -> float | None:
        """Milliseconds of its own health check; None where it does not answer."""
        if not self.ready_path:
            return 0.0
        assert self._session is not None
        start = time.perf_counter()
        if self.ready and await answers(self._session, self.url + self.ready_path):
            return (time.perf_counter() - start) * 1000
        return None

    async def again(self) -> bool:
        """Wait until a server that did not answer can be asked again; False where it cannot in time. All who wait share one look."""
        if self._healing is None or self._healing.done():
            self._healing = asyncio.ensure_future(self._heal())
        return await asyncio.shield(self._healing)

    async def _heal(self) -> bool:
        until = time.monotonic() + AGAIN_S
        while time.monotonic() < until:
            if await self.latency_ms() is not None:
                return True
            await asyncio.sleep(PROBE_S)
        return False
