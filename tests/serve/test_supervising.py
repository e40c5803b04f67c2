"""EngineServer with tiny children: how one comes up or does not, is watched, is started again, and is ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from largeforge.contract import Launch
from largeforge.errors import ServeError
from largeforge.process import free_port
from largeforge.serve import supervising
from largeforge.serve.base import run_loop
from largeforge.serve.hosting import WORD
from largeforge.serve.supervising import EngineServer, answers

BEGIN = """
import http.server, os, signal, subprocess, sys, time
with open("pids", "a") as stream:
    stream.write(f"{os.getpid()}\\n")
port = int(sys.argv[1])
def serve(status=lambda number: 200):
    class Handler(http.server.BaseHTTPRequestHandler):
        number = -1
        def do_GET(self):
            Handler.number += 1
            with open("looks", "a") as stream:
                stream.write("x")
            self.send_response(status(Handler.number))
            self.send_header("Content-Length", "0")
            self.end_headers()
        def log_message(self, *arguments):
            pass
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
GRANDCHILD = "subprocess.Popen([sys.executable, '-S', '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'])\n"
SERVES = "serve()"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve()"


def child(code: str, *, start_timeout_s: float = 30.0, stdin: bytes = b"") -> Callable[[int], Launch]:
    """What launches a program; it works in a folder where it notes its pid, and each look at it."""
    return lambda port: Launch([sys.executable, "-S", "-c", BEGIN + code, str(port)], dict(os.environ), "/health", start_timeout_s, stdin=stdin)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the children work."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run a story in the loop that servers have."""
    run_loop(asyncio.wait_for(story(), 60))


@asynccontextmanager
async def up(server: EngineServer) -> Any:
    """Start it; it is stopped whatever happens."""
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def until(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    return holds()


def kill(server: EngineServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


async def answering(url: str) -> bool:
    async with aiohttp.ClientSession() as session:
        return await answers(session, url)


def pids(folder: Path) -> list[int]:
    """Of every child that was started, the first one first."""
    return [int(line) for line in (folder / "pids").read_text().split()]


def living(folder: Path) -> list[int]:
    """What runs of the sessions of all children that were started."""
    leaders, found = set(pids(folder)), []
    for one in psutil.process_iter():
        with suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(one.pid) in leaders and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found


async def gone(folder: Path) -> bool:
    """Whether nothing is left of them; those that were killed have a moment to be buried."""
    return await until(lambda: not living(folder), 5)


# ---- it comes up, or not ----


def test_it_comes_up(folder: Path) -> None:
    """It is told what it needs on its standard input, and is ready when it answers."""

    async def story() -> None:
        server = EngineServer(child("print('told', sys.stdin.read(), flush=True)\nserve()", stdin=b"the word"), folder=folder)
        assert (server.pid, server.ready.is_set()) == (None, False)
        async with up(server):
            assert server.ready.is_set() and server.load_seconds > 0 and [server.pid] == pids(folder)
            assert await answering(f"{server.url}/health")
            assert (folder / "engine.txt").read_text() == "told the word\n"
        assert (server.pid, server.ready.is_set(), server.restarts) == (None, False, 0) and await gone(folder)

    run(story)


def test_one_that_ends_before_it_is_ready(folder: Path) -> None:
    """The end of what it printed is told; a word that an earlier one left is not."""
    (folder / WORD).write_text("An old story.")

    async def story() -> None:
        server = EngineServer(child(GRANDCHILD + "print('x' * 5000 + ' the disk is on fire', flush=True)\nsys.exit(3)"), folder=folder)
        try:
            with pytest.raises(ServeError, match="ended with code 3 before it was ready") as told:
                await server.start()
            assert told.value.message.endswith("x the disk is on fire") and len(told.value.message) < 2200
            assert told.value.next_step == f"see {folder / 'engine.txt'}"
            assert await gone(folder)
        finally:
            await server.stop()

    run(story)


def test_the_word_that_one_leaves(folder: Path) -> None:
    """Of what it printed nothing is told then."""

    async def story() -> None:
        code = f"open({WORD!r}, 'w').write('The model is broken.\\nTry: another one')\nprint('a traceback', flush=True)\nsys.exit(2)"
        with pytest.raises(ServeError) as told:
            await EngineServer(child(code), folder=folder).start()
        assert (told.value.message, told.value.next_step) == ("The model is broken.", "another one")

    run(story)


@pytest.mark.parametrize(
    "code",
    ["time.sleep(600)", "import socket\nheld = socket.create_server(('127.0.0.1', port))\ntime.sleep(600)", "serve(lambda number: 503)"],
    ids=["does not listen", "says nothing", "says that it is not"],
)
def test_one_that_never_gets_ready(folder: Path, code: str) -> None:
    """Is given its time, then ended with all that it started."""

    async def story() -> None:
        server = EngineServer(child(GRANDCHILD + code, start_timeout_s=1.0), folder=folder)
        begin = time.monotonic()
        try:
            with pytest.raises(ServeError, match="was not ready after 1 s"):
                await server.start()
            assert 1 <= time.monotonic() - begin < 4
            assert await gone(folder) and not server.ready.is_set()
        finally:
            await server.stop()

    run(story)


def test_a_program_that_is_not_there(folder: Path) -> None:
    async def story() -> None:
        server = EngineServer(lambda port: Launch(["/no/such/program"], {}, "/health", 5.0), folder=folder)
        with pytest.raises(ServeError, match="/no/such/program could not be started: No such file"):
            await server.start()
        await server.stop()

    run(story)


# ---- it is started again ----


def test_one_that_is_killed_is_started_again(folder: Path) -> None:
    """Proves SYS-R-003: on another port, with nothing left of the one before."""

    async def story() -> None:
        restarts: list[bool] = []
        server = EngineServer(child(GRANDCHILD + SERVES), folder=folder)
        server.on_restart = lambda: restarts.append(server.ready.is_set())
        async with up(server):
            url, first = server.url, server.pid
            kill(server)
            assert await until(lambda: server.restarts == 1 and server.ready.is_set())
            assert server.url != url and await answering(f"{server.url}/health") and not await answering(f"{url}/health")
            assert restarts == [False] and server.pid == pids(folder)[1] != first
            assert await until(lambda: len(living(folder)) == 2, 5)
        assert await gone(folder)

    run(story)


def test_a_port_of_its_own_is_kept(folder: Path) -> None:
    async def story() -> None:
        port = free_port()
        async with up(EngineServer(child(SERVES), folder=folder, port=port)) as server:
            kill(server)
            assert await until(lambda: server.restarts == 1 and server.ready.is_set())
            assert server.url == f"http://127.0.0.1:{port}" and await answering(f"{server.url}/health")

    run(story)


def test_it_waits_longer_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 s, doubled up to 30 s; 0.1 s again after one that ran for CALM_S."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float, *rest: Any) -> None:
        if seconds >= supervising.FIRST_WAIT_S:
            waits.append(seconds)
            seconds = 0
        await sleep(seconds, *rest)

    monkeypatch.setattr(asyncio, "sleep", recorded)
    good, works = child(SERVES), True

    def launch(port: int) -> Launch:
        return good(port) if works else Launch(["false"], dict(os.environ), "/health", 30.0)

    async def story() -> None:
        nonlocal works
        async with up(EngineServer(launch, folder=folder)) as server:
            works = False
            kill(server)
            assert await until(lambda: len(waits) >= 12)
            works = True
            assert await until(server.ready.is_set)
            assert waits[:12] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30]) and server.restarts == len(waits)
            for calm_s, expected in ((0.0, 0.1), (1000.0, 0.2), (1000.0, 0.4), (0.0, 0.1)):
                monkeypatch.setattr(supervising, "CALM_S", calm_s)
                number = len(waits)
                kill(server)
                assert await until(lambda number=number: len(waits) == number + 1 and server.ready.is_set())
                assert waits[-1] == pytest.approx(expected)

    run(story)


def test_one_that_cannot_be_made_ready_is_started_again(folder: Path) -> None:
    """It answers, and what has to be done before it is ready fails in a way that nobody foresaw."""

    async def story() -> None:
        async with up(EngineServer(child(SERVES), folder=folder)) as server:
            faults = [RuntimeError("not foreseen")]

            async def before_ready() -> None:
                if faults:
                    raise faults.pop()

            server.before_ready = before_ready
            kill(server)
            assert await until(lambda: server.restarts == 2 and server.ready.is_set())
        assert await gone(folder)

    run(story)


# ---- it is looked at ----


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that follow each other quickly."""
    monkeypatch.setattr(supervising, "LOOK_S", 0.05)
    monkeypatch.setattr(supervising, "LOOK_TIMEOUT_S", 0.4)


def test_one_that_hangs_is_ended_and_started_again(folder: Path, looks: None) -> None:
    """After as many looks in a row as LOOKS says, not sooner."""

    async def story() -> None:
        async with up(EngineServer(child(SERVES), folder=folder)) as server:
            first = server.pid
            assert first is not None
            begin = time.monotonic()
            os.kill(first, signal.SIGSTOP)
            assert await until(lambda: server.restarts == 1)
            assert time.monotonic() - begin > supervising.LOOKS * supervising.LOOK_TIMEOUT_S
            assert await until(server.ready.is_set) and server.pid != first and not psutil.pid_exists(first)

    run(story)


def test_one_that_is_late_now_and_then_goes_on(folder: Path, looks: None) -> None:
    """Two missed looks are no reason, however often they come."""

    async def story() -> None:
        async with up(EngineServer(child("serve(lambda number: 200 if number % 3 == 0 else 503)"), folder=folder)) as server:
            first = server.pid
            assert await until(lambda: len((folder / "looks").read_text()) > 12)
            assert (server.restarts, server.pid, server.ready.is_set()) == (0, first, True)

    run(story)


# ---- it is ended ----


@pytest.mark.parametrize(
    ("code", "stop_s", "least_s", "most_s"),
    [(SERVES, 30.0, 0.0, 5.0), (DEAF, 1.0, 1.0, 6.0), (DEAF, 0.0, 0.0, 5.0)],
    ids=["it obeys", "it does not", "it is not asked"],
)
def test_nothing_is_left_of_it(folder: Path, code: str, stop_s: float, least_s: float, most_s: float) -> None:
    """Grandchildren that obey nobody included; as soon as it has ended, and after stop_s at the latest."""

    async def story() -> None:
        server = EngineServer(child(GRANDCHILD + code), folder=folder, stop_s=stop_s)
        async with up(server):
            assert await until(lambda: len(living(folder)) == 2)
            begin = time.monotonic()
            await server.stop()
            assert least_s <= time.monotonic() - begin < most_s
            assert await gone(folder) and server.pid is None
            await server.stop()  # once more is nothing

    run(story)


def test_it_is_ended_at_once_where_nobody_waits_any_more(folder: Path) -> None:
    async def story() -> None:
        async with up(EngineServer(child(DEAF), folder=folder, stop_s=50.0)) as server:
            begin = time.monotonic()
            await server.stop(at_once=lambda: time.monotonic() - begin > 0.5)
            assert 0.5 <= time.monotonic() - begin < 5 and await gone(folder)

    run(story)


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.3])
def test_it_is_ended_while_it_starts(folder: Path, after_s: float) -> None:
    """Whoever waited for it gave up, as at Ctrl-C while a model is loaded."""

    async def story() -> None:
        server = EngineServer(child("time.sleep(600)"), folder=folder)
        starting = asyncio.ensure_future(server.start())
        await asyncio.sleep(after_s)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop()
        await asyncio.sleep(0.3)  # a child that came to be all the same would say so by now
        assert server.pid is None and not ((folder / "pids").exists() and living(folder))

    run(story)


def test_it_is_ended_while_it_waits_to_be_started_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays away."""
    monkeypatch.setattr(supervising, "FIRST_WAIT_S", 0.5)

    async def story() -> None:
        async with up(EngineServer(child(SERVES), folder=folder)) as server:
            kill(server)
            assert await until(lambda: server.restarts == 1)
            await server.stop()
            await asyncio.sleep(1)
            assert len(pids(folder)) == 1 and await gone(folder)

    run(story)
