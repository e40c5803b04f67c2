"""What /health says of a store that answers, fails and hangs; and that a store that hangs holds up nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from largeforge.asgi import App
from largeforge.errors import StoreError
from largeforge.guard.meters import Meters
from largeforge.serve import door as doors
from largeforge.serve import upstream as upstreams
from largeforge.serve.door import Door
from largeforge.serve.upstream import Upstream


class Store:
    """Counts how often it is looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.go = threading.Event()
        self.fails = False

    def num_keys(self) -> int:
        self.looks += 1
        assert self.go.wait(60)
        if self.fails:
            raise StoreError("away")
        return 1


class Engine:
    """An engine that is well."""

    names = ("m",)
    server = None
    ready = True
    model = ""

    async def latency_ms(self) -> float:
        return 0.1


class NoGuard:
    active = waiting = 0

    def drain(self) -> None:
        """Nothing waits."""


def standing(store: Store) -> Door:
    def guard(app: App) -> tuple[App, Any]:
        return app, NoGuard()

    engine: Any = Engine()
    kept: Any = store
    return Door(engine, guard=guard, meters=Meters(), store=kept, defaults=None)


def asked(door: Door) -> httpx.AsyncClient:
    app: Any = door
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door")


def told(answer: httpx.Response) -> tuple[int, str, str]:
    """Status of HTTP, of the whole, of the store."""
    found = answer.json()
    return answer.status_code, found["status"], next(one["status"] for one in found["components"] if one["name"] == "store")


def test_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told within the time that it has; all who ask share one look at it; and the loop ends though the look does not."""
    monkeypatch.setattr(doors, "STORE_WAIT_S", 0.2)
    store = Store()
    found: list[tuple[int, str, str]] = []

    async def ask() -> None:
        async with asked(standing(store)) as http:
            for _ in range(2):
                found.extend(told(one) for one in await asyncio.gather(*(http.get("/health") for _ in range(20))))

    rescue = threading.Timer(20, store.go.set)
    rescue.start()
    start = time.monotonic()
    asyncio.run(ask())
    took = time.monotonic() - start
    rescue.cancel()
    store.go.set()
    assert found == [(200, "degraded", "unhealthy")] * 40 and store.looks == 1
    assert took < 10, "a thread of asyncio's own would have been waited for"


def test_a_flood_of_questions_is_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "STORE_FOR_S", 3600.0)
    store = Store()
    store.go.set()

    async def ask() -> None:
        async with asked(standing(store)) as http:
            assert [told(await http.get("/health")) for _ in range(30)] == [(200, "healthy", "healthy")] * 30
            assert store.looks == 1
            store.fails = True
            assert told(await http.get("/health"))[2] == "healthy", "as it was found"
            monkeypatch.setattr(doors, "STORE_FOR_S", 0.0)
            assert told(await http.get("/health")) == (200, "degraded", "unhealthy")
            store.fails = False
            assert told(await http.get("/health")) == (200, "healthy", "healthy") and store.looks == 3

    asyncio.run(ask())


def test_an_engine_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and answers none: told within the time that a look has."""
    monkeypatch.setattr(upstreams, "LOOK_TIMEOUT_S", 0.2)

    async def story() -> None:
        never = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await never.wait()
            writer.close()

        listener = await asyncio.start_server(hang, "127.0.0.1", 0)
        server: Any = SimpleNamespace(url=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", ready=asyncio.Event())
        server.ready.set()
        upstream = Upstream(server=server, names=["m"])
        await upstream.open()
        try:
            assert await asyncio.wait_for(upstream.latency_ms(), 10) is None
        finally:
            never.set()
            await upstream.close()
            listener.close()

    asyncio.run(story())
