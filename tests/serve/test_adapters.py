"""Adapters that come and go: the door's two routes, before a supervised stand-in of vLLM that is killed. The real one: test_vllm_door.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import httpx
import pytest

from largeforge.asgi import App
from largeforge.call import ADMIN_PATHS
from largeforge.contract import Launch
from largeforge.guard.meters import Meters
from largeforge.serve.door import Door
from largeforge.serve.supervising import EngineServer
from largeforge.serve.upstream import Upstream
from tests.serve.running import serving
from tests.serve.servers import chat, start
from tests.tiny_models import part

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
STAND_IN = Path(__file__).with_name("lora_server.py")


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


class Open:
    """No guard at all, that counts nothing."""

    active = waiting = 0

    def drain(self) -> None:
        """Nothing waits."""


class Standing:
    """A door that answers, and the stand-in behind it."""

    def __init__(self, http: httpx.AsyncClient, server: EngineServer, door: Door) -> None:
        self.http, self.server, self.door = http, server, door

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = await self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()["error"] if status != 200 else answer.text

    async def names(self) -> list[str]:
        return [one["id"] for one in (await self.http.get("/v1/models")).json()["data"]]

    async def says(self, name: str) -> str:
        answer = await self.http.post("/v1/chat/completions", json=chat("Hi") | {"model": name})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    async def killed(self) -> None:
        """Kill the stand-in; back when another one is ready."""
        pid = self.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while self.server.pid in (pid, None) or not self.server.ready.is_set():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def standing(folder: Path, *, allowed: bool = True) -> AsyncIterator[Standing]:
    def launch(port: int) -> Launch:
        return Launch([sys.executable, str(STAND_IN), str(port), "given"], dict(os.environ), "/health", 60.0)

    server = EngineServer(launch, folder=folder, stop_s=0.0)
    upstream = Upstream(server=server, names=["base", "given"])
    look = part("engine", "vllm", python=sys.executable, max_lora_rank=16).adapter if allowed else None

    def guard(app: App) -> tuple[App, Any]:
        return app, Open()

    door = Door(upstream, guard=guard, meters=Meters(), store=None, defaults=None, adapter=look)
    await upstream.open()
    try:
        await server.start()
        door.loading = False
        async with serving(door) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            yield Standing(http, server, door)
    finally:
        await upstream.close()
        await server.stop()


def adapter(folder: Path, *, r: int = 8, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": r, **fields}), encoding="utf-8")
    return folder


@in_a_loop
async def test_one_comes_answers_and_goes(tmp_path: Path) -> None:
    place = adapter(tmp_path / "sql")
    async with standing(tmp_path) as one:
        assert await one.names() == ["base", "given"]
        assert (await one.post("/v1/chat/completions", 404, **(chat("Hi") | {"model": "sql"})))["code"] == "model_not_found"
        assert "sql" in await one.post(LOAD, lora_name="sql", lora_path=str(place))
        assert await one.names() == ["base", "given", "sql"]
        assert await one.says("sql") == str(place)
        assert (await one.http.get("/v1/models/sql")).status_code == 200
        await one.post(UNLOAD, lora_name="sql")
        assert await one.names() == ["base", "given"]
        await one.post("/v1/chat/completions", 404, **(chat("Hi") | {"model": "sql"}))


@in_a_loop
async def test_an_engine_that_was_started_again_has_what_the_one_before_had(tmp_path: Path) -> None:
    """Before it is ready: nobody is told that an adapter does not exist which did a second ago; what went stays away."""
    first, second, lost = (adapter(tmp_path / name) for name in ("first", "second", "lost"))
    async with standing(tmp_path) as one:
        await one.post(LOAD, lora_name="sql", lora_path=str(first))
        await one.post(LOAD, lora_name="sql", lora_path=str(second), load_inplace=True)
        await one.post(LOAD, lora_name="lost", lora_path=str(lost))
        await one.post(LOAD, lora_name="given", lora_path=str(first), load_inplace=True)
        await one.post(UNLOAD, lora_name="given")
        (lost / "adapter_config.json").unlink()
        await one.killed()
        assert await one.names() == ["base", "sql"], "lost cannot be had any more, and given was let go"
        assert await one.says("sql") == str(second)
        await one.post("/v1/chat/completions", 404, **(chat("Hi") | {"model": "given"}))
        await one.post(LOAD, lora_name="given", lora_path=str(first))  # the engine has not kept the one of its command line
        assert await one.says("given") == str(first)


@in_a_loop
async def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    good, broken = adapter(tmp_path / "good"), adapter(tmp_path / "broken", r=13)
    large, dora = adapter(tmp_path / "large", r=64), adapter(tmp_path / "dora", use_dora=True)
    async with standing(tmp_path) as one:
        wrong: list[tuple[str, int, str | None, dict[str, Any]]] = [
            (LOAD, 400, "lora_name", {"lora_name": "base", "lora_path": str(good), "load_inplace": True}),
            (LOAD, 400, "lora_name", {"lora_name": "given", "lora_path": str(good)}),
            (LOAD, 400, "lora_name", {"lora_name": "a b", "lora_path": str(good)}),
            (LOAD, 400, "lora_name", {"lora_path": str(good)}),
            (LOAD, 400, "lora_path", {"lora_name": "x", "lora_path": str(tmp_path / "nowhere")}),
            (LOAD, 400, "lora_path", {"lora_name": "x", "lora_path": "\0"}),
            (LOAD, 400, "lora_path", {"lora_name": "x", "lora_path": "~nobody-of-that-name/x"}),
            (LOAD, 400, "lora_path", {"lora_name": "x", "lora_path": "/" + "x" * 4000}),
            (LOAD, 400, "lora_path", {"lora_name": "x", "lora_path": str(large)}),
            (LOAD, 400, "lora_path", {"lora_name": "x", "lora_path": str(dora)}),
            (LOAD, 400, "adapter", {"lora_name": "x", "lora_path": str(good), "adapter": 1}),
            (LOAD, 500, None, {"lora_name": "x", "lora_path": str(broken)}),
            (UNLOAD, 400, "lora_name", {"lora_name": "base"}),
            (UNLOAD, 404, "lora_name", {"lora_name": "never"}),
        ]
        for path, status, param, body in wrong:
            error = await one.post(path, status, **body)
            assert error["param"] == param and error["message"], body
        for path in (LOAD, UNLOAD):
            assert (await one.http.get(path)).status_code == 405
            assert (await one.http.post(path, content=b"{")).status_code == 400
            assert (await one.http.post(path, json={}, headers={"Origin": "http://evil.example"})).status_code == 403
        assert await one.names() == ["base", "given"]


@in_a_loop
async def test_two_who_load_one_name_at_once(tmp_path: Path) -> None:
    place = adapter(tmp_path / "sql")
    async with standing(tmp_path) as one:
        said = await asyncio.gather(*(one.http.post(LOAD, json={"lora_name": "sql", "lora_path": str(place)}) for _ in range(8)))
        assert sorted(answer.status_code for answer in said) == [200] + [400] * 7
        assert await one.names() == ["base", "given", "sql"]
        slow, quick = (adapter(tmp_path / name) for name in ("slow", "quick"))
        first = asyncio.ensure_future(one.post(LOAD, lora_name="sql", lora_path=str(slow), load_inplace=True))
        await asyncio.sleep(0.1)  # it is taken now, and answered after half a second
        await asyncio.gather(first, one.post(LOAD, lora_name="sql", lora_path=str(quick), load_inplace=True))
        before = await one.says("sql")
        await one.killed()
        assert await one.says("sql") == before


@in_a_loop
async def test_not_before_the_model_is_there(tmp_path: Path) -> None:
    async with standing(tmp_path) as one:
        one.door.loading = True
        assert (await one.post(LOAD, 503, lora_name="sql", lora_path=str(adapter(tmp_path / "sql"))))["code"] == "loading"


@in_a_loop
async def test_where_none_comes_the_routes_say_what_would_let_them(tmp_path: Path) -> None:
    place = adapter(tmp_path / "sql")
    async with standing(tmp_path, allowed=False) as one:
        for path in (LOAD, UNLOAD):
            error = await one.post(path, 404, lora_name="sql", lora_path=str(place))
            assert "engine.runtime_adapters=true" in error["message"]
        assert not ADMIN_PATHS & set((await one.http.get("/openapi.json")).json()["paths"])


@in_a_loop
async def test_the_routes_are_written_down(tmp_path: Path) -> None:
    async with standing(tmp_path) as one:
        assert set((await one.http.get("/openapi.json")).json()["paths"]) >= ADMIN_PATHS


@pytest.mark.parametrize("word", ["serve.open=true", "guards.keys.require=false"])
def test_not_where_everybody_could(word: str, tmp_path: Path) -> None:
    """Loading reads folders of the server's machine."""
    process = start(tmp_path, "engine=vllm", "engine.runtime_adapters=true", "serve.host=0.0.0.0", word)
    try:
        assert process.wait(60) == 2
    finally:
        process.kill()
    said = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    assert "everybody who reaches 0.0.0.0 could load adapters" in said and "Traceback" not in said
