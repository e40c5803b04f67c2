"""The door: everything that clients see, as one ASGI app, and what it is asked about itself.

Built from live objects that the story brings: who is asked, what guards, who keeps keys. Starts nothing and listens nowhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import aiohttp

from largeforge.asgi import App, Receive, Scope, Send, foreign_page, refuse
from largeforge.call import ADMIN_PATHS, GENERATING
from largeforge.contract import Store
from largeforge.errors import StoreError
from largeforge.serve.adapters import Adapters
from largeforge.serve.asking import Defaults
from largeforge.serve.completions import MODELS, PATHS, Completions
from largeforge.serve.inner import call as inner_call
from largeforge.serve.pages import SCRIPT, SHEET, Asked, Component, pages
from largeforge.serve.upstream import Upstream
from largeforge.serve.websocket import WebSocket
from largeforge.threads import in_daemon_thread

SOCKET = "/v1/ws"
ENVELOPE_BYTES = 4096  # what a message has around the body of a request
STORE_WAIT_S, STORE_FOR_S = 5.0, 1.0  # that a store has to answer /health, and that its answer holds
LAST_WORDS_S = 2.0  # for those who are told at the end that they are not answered any more
ROUTES = (*PATHS, *sorted(ADMIN_PATHS), SOCKET, "/", "/health", "/ready", "/metrics", "/docs", SCRIPT, SHEET, "/openapi.json")
"""Every path that is answered; any other is "other" in logs and metrics."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text exposition format


class Concurrent(Protocol):
    """The guard that counts what runs: `largeforge.guard.concurrency.Concurrency`."""

    @property
    def active(self) -> int:
        """Requests that are being answered."""

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""

    def drain(self) -> None:
        """Take no more."""


class Door:
    """The app, and its state.

    Args:
        upstream: who is asked.
        guard: puts the guards around an app; returns that, and the guard that counts what runs.
        meters: what is measured: `largeforge.guard.meters.Meters`.
        store: who keeps keys; None where nobody does.
        defaults: what holds where a request does not say; None where the engine has its own.
        max_body_bytes: of a request; messages of WebSocket and gRPC may have a little more, and pass the guard that keeps this limit.
        adapter: looks at an adapter that comes while it runs, see `largeforge.serve.adapters`; None where none does.
        title: of the OpenAPI document.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        guard: Callable[[App], tuple[App, Concurrent]],
        meters: Any,
        store: Store | None,
        defaults: Defaults | None,
        max_body_bytes: int = 8 * 2**20,
        adapter: Callable[[str, str], Path] | None = None,
        title: str = "LargeForge",
    ) -> None:
        self.upstream = upstream
        self.meters = meters
        self.store = store
        self.draining = False
        self.loading = True
        self.completions = Completions(upstream, defaults=defaults, created=int(time.time()), piece=getattr(meters, "piece", None))
        self.adapters = Adapters(upstream, look=adapter)
        self.pages: Any = pages(Asked(self.components, lambda: self.state, self.metrics), title=title, adapters=adapter is not None)
        self.max_message_bytes = max_body_bytes + ENVELOPE_BYTES
        self.websocket = WebSocket(max_message_bytes=self.max_message_bytes)
        self.app, self.concurrent = guard(self.route)
        self.websocket.app = self.app
        self._look: asyncio.Task[Component] | None = None
        self._looked_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a guarded request to whom it is for."""
        path = scope.get("path", "")
        if scope["type"] == "websocket":
            if path == SOCKET:
                await self.websocket(scope, receive, send)
                return
            return await refuse(scope, receive, send, 404, f"There is no WebSocket at {path[:200]}; it is at {SOCKET}.", kind="invalid_request_error")
        if scope["type"] != "http":
            return
        if path == SOCKET:
            return await refuse(scope, receive, send, 426, f"{SOCKET} is a WebSocket.", kind="invalid_request_error", headers={"upgrade": "websocket"})
        if path not in PATHS and path not in ADMIN_PATHS and not path.startswith(f"{MODELS}/"):
            await self.pages(scope, receive, send)
            return
        origin = foreign_page(scope)
        if origin is not None and scope["method"] == "POST":
            return await refuse(scope, receive, send, 403, f"Pages of {origin[:200]} may not ask this server.", kind="permission_error", code="origin")
        if self.loading and path in GENERATING | ADMIN_PATHS:
            headers = {"retry-after": "5"}
            return await refuse(scope, receive, send, 503, "The model is being loaded.", kind="server_error", code="loading", headers=headers)
        await (self.adapters if path in ADMIN_PATHS else self.completions)(scope, receive, send)

    @property
    def state(self) -> Literal["ready", "loading", "draining"]:
        """Whether requests should be sent here."""
        return "draining" if self.draining else "ready" if self.upstream.ready and not self.loading else "loading"

    async def components(self) -> list[Component]:
        """Look at the engine, and at the store."""
        found = []
        latency = await self.upstream.latency_ms()
        found.append(Component(name="engine", status="unhealthy" if latency is None else "healthy", latency_ms=latency or 0.0))
        if self.store is not None:
            found.append(await self._of_store(self.store))
        return found

    async def _of_store(self, store: Store) -> Component:
        """What the store's last look said; looked at anew where that is over a second ago, once for all who ask meanwhile."""
        if self._look is None or (self._look.done() and time.monotonic() - self._looked_at >= STORE_FOR_S):
            self._look, self._looked_at = asyncio.ensure_future(self._look_at(store)), time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.shield(self._look), STORE_WAIT_S)
        except asyncio.TimeoutError:
            return Component(name="store", status="unhealthy", latency_ms=1000 * STORE_WAIT_S)

    async def _look_at(self, store: Store) -> Component:
        start = time.perf_counter()
        try:
            await in_daemon_thread(store.num_keys, name="look-at-store")
            healthy = True
        except StoreError:
            healthy = False
        return Component(name="store", status="healthy" if healthy else "unhealthy", latency_ms=(time.perf_counter() - start) * 1000)

    async def metrics(self) -> tuple[bytes, str]:
        """Gather what the engine says of itself, and write all down."""
        if self.upstream.server is not None and self.upstream.ready:
            try:
                found = await self.upstream.get("/stats", timeout_s=2)
                self.meters.engine_says(found)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError):
                pass  # vLLM has no /stats, and one that is dying answers none
        return self.meters.text(), METRICS_TYPE

    async def authorise(self, headers: list[tuple[bytes, bytes]]) -> int:
        """Return the status of a request with these headers: 200 where they open the door."""
        async with inner_call(self.app, path="/v1/models", body=b"", headers=headers, client=None, transport="grpc", method="GET") as reply:
            return int(reply.status)

    async def drain(self, limit_s: float, *, at_once: Callable[[], bool]) -> int:
        """Take no more, wait for what runs; return how many were still running at the limit."""
        self.draining = True
        self.concurrent.drain()
        until = time.monotonic() + limit_s
        while self._running and time.monotonic() < until and not at_once():
            await asyncio.sleep(0.05)
        left = self._running
        while self._running and time.monotonic() < until + LAST_WORDS_S:  # those that wait in the queue come after those that run
            self.completions.break_off()
            await asyncio.sleep(0.05)
        return left

    @property
    def _running(self) -> int:
        return self.concurrent.active + self.concurrent.waiting
