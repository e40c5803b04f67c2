"""How a server ends when it is told so more than once, or before it can listen. The first signal: test_serving_echo."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from largeforge.process import free_port
from largeforge.serve.base import Stops, run_loop
from tests.serve.servers import serving
from tests.serve.test_elsewhere import start_engine, until


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def connected(port: int, request: bytes) -> socket.socket:
    """A request under way."""
    one = socket.create_connection(("127.0.0.1", port), timeout=30)
    one.sendall(request)
    return one


def test_more_signals_while_it_cleans_up(tmp_path: Path) -> None:
    """They change nothing: connections are closed, the engine is ended, the result is written, exit code 0."""
    with serving(tmp_path, "engine=echo", "serve.grpc_port=0") as server:
        family = server.family()
        family[1].suspend()  # the engine answers no look: whoever asks how it is holds up the end for as long as that may take
        with connected(int(server.url.rpartition(":")[2]), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            time.sleep(0.3)
            server.process.terminate()
            assert until(lambda: "\nstopped\n" in server.said)
            begin = time.monotonic()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                time.sleep(0.2)
                assert server.process.poll() is None, "it cleans up no more"
                server.process.send_signal(number)
            assert server.process.wait(30) == 0
            assert time.monotonic() - begin < 12
        assert not any(one.is_running() for one in family)
        assert "safe point" not in server.said, server.said
    found = result(tmp_path / "run")
    assert found["status"] == "done" and found["metrics"]["restarts"] == 0


def test_an_engine_server_that_is_told_twice(tmp_path: Path) -> None:
    """It finishes what runs after the first signal, and ends at once after the second; a third one changes nothing."""
    port = free_port()
    process = start_engine(tmp_path, "serve=engine", "engine=echo", f"serve.port={port}")
    try:
        assert until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
        assert until(lambda: "ready in" in (tmp_path / "printed.txt").read_text(encoding="utf-8"))
        family = psutil.Process(process.pid).children(recursive=True)
        body = json.dumps({"model": "echo", "prompt": "a", "max_tokens": 9_000_000, "ignore_eos": True, "stream": True}).encode()
        with connected(port, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as asking:
            assert asking.recv(100).startswith(b"HTTP/1.1 200")
            process.terminate()
            time.sleep(1)
            assert process.poll() is None, "it did not finish what runs"
            begin = time.monotonic()
            for number in (signal.SIGTERM, signal.SIGINT):
                process.send_signal(number)
            assert process.wait(30) == 0 and time.monotonic() - begin < 5
        assert not any(one.is_running() for one in family)
    finally:
        process.kill()
        process.wait()
    assert result(tmp_path / "run")["status"] == "done"


def test_signals_are_counted() -> None:
    """Told before it listened it does not even begin; a second one is for an end at once; none is left to do harm afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    said: list[str] = []
    run: Any = SimpleNamespace(stop_asked=False, progress=SimpleNamespace(say=said.append))

    async def story() -> None:
        with Stops(run) as stops:
            assert await stops.unless_asked(asyncio.sleep(0))
            os.kill(os.getpid(), signal.SIGTERM)
            assert not await stops.unless_asked(asyncio.sleep(60)) and not stops.at_once
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.05)
            assert stops.at_once and said == ["Stopping: what runs is finished; once more stops at once."]
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}

    async def told_before() -> None:
        run.stop_asked = True
        with Stops(run) as stops:
            assert not await stops.unless_asked(asyncio.sleep(60))

    async def not_told() -> None:
        run.stop_asked = False
        with Stops(run):
            await asyncio.sleep(0)

    try:
        for one in (story, told_before):
            run_loop(one())
            for number, handler in before.items():  # a run does that: `largeforge.run.signals_to`
                signal.signal(number, handler)
        run_loop(not_told())
        assert {number: signal.getsignal(number) for number in before} == before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
