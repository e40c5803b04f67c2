"""A door whose engine stands elsewhere: started before it, alone with it, without it, and before servers that speak a little differently."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from largeforge.process import free_port
from largeforge.serve.asking import Defaults, asked_of
from largeforge.serve.wire import COMPLETIONS, parse
from tests.serve.servers import Server, serving, start

BODY = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if holds():
                return True
        time.sleep(0.05)
    return False


def test_a_door_before_its_engine_with_it_and_without_it(tmp_path: Path) -> None:
    """Proves SYS-I-011: started in any order; /ready follows the engine; models are those that it lists now, and their defaults are its own."""
    engine_port, door_port = free_port(), free_port()
    for name in ("door", "one", "two"):
        (tmp_path / name).mkdir()
    door = start(tmp_path / "door", "serve=door", f"serve.engine_url=http://127.0.0.1:{engine_port}", f"serve.port={door_port}", "serve.grpc_port=0")
    words = ("serve=engine", "engine=echo", f"serve.port={engine_port}")
    running = [door]
    try:
        server = Server(door, f"http://127.0.0.1:{door_port}", tmp_path / "door" / "run", tmp_path / "door" / "printed.txt")
        assert until(lambda: server.ask("/ready", None) == (503, {"status": "loading"}))
        running.append(start_engine(tmp_path / "one", *words, "serve.name=first", "engine.max_tokens=300"))
        assert until(lambda: server.ask("/ready", None)[0] == 200)
        assert [one["id"] for one in server.get("/v1/models")["data"]] == ["first"]
        answer = server.ask("/v1/completions", {"model": "first", "prompt": "a " * 400})[1]
        assert answer["usage"]["completion_tokens"] == 300
        running[-1].terminate()
        running[-1].wait(30)
        assert until(lambda: server.ask("/ready", None)[0] == 503) and server.get("/health")["status"] == "unhealthy"
        status, refusal = server.ask("/v1/completions", {"model": "first", "prompt": "a"})
        assert status == 503 and f"127.0.0.1:{engine_port}" in refusal["error"]["message"]
        running.append(start_engine(tmp_path / "two", *words, "serve.name=second"))
        assert until(lambda: [one["id"] for one in server.get("/v1/models")["data"]] == ["second"])
        assert server.ask("/ready", None)[0] == 200
    finally:
        for process in running:
            process.terminate()
            process.wait(30)


def start_engine(folder: Path, *words: str) -> Any:
    """Start an engine server; store and serve.port of `start` are not for it."""
    import os
    import subprocess
    import sys

    from tests.serve.servers import ROOT

    with (folder / "printed.txt").open("wb") as printed:
        command = [sys.executable, "-m", "largeforge", "task=serve", f"folder={folder / 'run'}", *words]
        return subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed)


@contextlib.contextmanager
def upstream(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Iterator[tuple[str, list[str]]]:
    """A server that lists model m and answers chats as told; yields its URL and what was asked."""
    asked: list[str] = []
    port = free_port()
    loop = asyncio.new_event_loop()

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        asked.append(await request.text())
        return await answer(request)

    async def begin() -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    runner = loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/v1", asked
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def remote(tmp_path: Path, url: str) -> Any:
    return serving(tmp_path, "engine=remote", f"engine.url={url}", "serve.grpc_port=0")


def test_events_whose_lines_end_otherwise(tmp_path: Path) -> None:
    """CRLF, as some servers write it, cut in the middle of a line end; asked once."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        said = [
            {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}]},
            {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
        ]
        text = "".join(f"data: {json.dumps(one)}\r\n\r\n" for one in said) + "data: [DONE]\r\n\r\n"
        cut = text.index("\r\n") + 1
        for piece in (text[:cut], text[cut:]):
            await response.write(piece.encode())
            await asyncio.sleep(0.05)
        return response

    with upstream(answer) as (url, asked), remote(tmp_path, url) as server:
        status, text = server.ask("/v1/chat/completions", {**BODY, "stream": True})
        assert status == 200 and "hello" in text and text.endswith("data: [DONE]\n\n") and "usage" not in text
        assert len(asked) == 1


@pytest.mark.parametrize(("status", "seen"), [(401, 503), (403, 503), (429, 429)])
def test_what_a_server_refuses(tmp_path: Path, status: int, seen: int) -> None:
    """Its words about the door's key are not for clients; when to come back is."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Incorrect API key: sk-abcd", "type": "x"}}, status=status, headers={"Retry-After": "17"})

    with upstream(answer) as (url, _), remote(tmp_path, url) as server:
        found, body = server.ask("/v1/chat/completions", BODY)
        assert found == seen and ("sk-abcd" in json.dumps(body)) == (status == 429)


def test_a_temperature_that_is_hardly_any() -> None:
    """Logits cannot be divided by it: greedy."""
    request, _ = parse(COMPLETIONS, b'{"model": "m", "prompt": "a", "temperature": 1e-40}')
    assert asked_of(request, defaults=Defaults(1, 1.0, 1.0, 0), adapters=())[0].temperature == 0.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("serve=door", "serve.engine_url=http://127.0.0.1:1", "model=nano"), "serve=door starts none"),
        (("engine=remote", "engine.url=http://127.0.0.1:1", "engine.budget.cost=5"), "a door passes requests on"),
        (("engine=remote", "engine.url=http://u:secretpw@127.0.0.1:1"), "came with a password"),
        (("engine=echo", "quant=nf4"), "loads none"),
        (("serve=door", "serve.engine_url=nonsense"), "no URL of an engine server"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    process = start(tmp_path, *words)
    assert process.wait(60) == 2
    said = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    assert says in said and "secretpw" not in said
