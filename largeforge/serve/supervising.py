"""One engine server as a child process: started, watched, started again with backoff, ended.

Knows processes and a port; nothing about models. What the child prints goes to a file of the run's folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp

from largeforge.contract import Launch
from largeforge.errors import LargeForgeError, ServeError
from largeforge.process import die_with_parent, free_port
from largeforge.serve.hosting import WORD

log = logging.getLogger("largeforge.serve")
PROBE_S = 0.05
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 30.0  # before it is started again; doubled each time
CALM_S = 60.0  # one that ran so long is started again without waiting
LOOK_S, LOOK_TIMEOUT_S, LOOKS = 2.0, 15.0, 3  # between looks, for one, and how many in a row may fail
TAIL = 2000  # characters of what a child printed that an error shows


class EngineServer:
    """A child that answers OpenAI's HTTP on a loopback port.

    Args:
        launch: what to start, for a port.
        folder: where it writes.
        host: where it can be reached.
        port: 0 takes a free one at each start.
        stop_s: seconds it is given to end by itself.
    """

    def __init__(self, launch: Callable[[int], Launch], *, folder: Path, host: str = "127.0.0.1", port: int = 0, stop_s: float = 10.0) -> None:
        self.launch = launch
        self.folder = folder
        self.host, self.fixed_port = host, port
        self.stop_s = stop_s
        self.url = ""
        self.ready = asyncio.Event()
        self.restarts = 0
        self.load_seconds = 0.0
        self.on_restart: Callable[[], None] = lambda: None
        self.before_ready: Callable[[], Awaitable[None]] = _nothing
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._ready_path = ""

    @property
    def pid(self) -> int | None:
        """Of the child; None where none runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises ServeError with what it said where it does not come up."""
        await self._up(await self._spawn())
        self._watcher = asyncio.ensure_future(self._watch())

    async def stop(self, *, at_once: Callable[[], bool] = lambda: False) -> None:
        """End it: asked first, killed after `stop_s` or as soon as `at_once` says so; nothing of it is left."""
        self.ready.clear()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        process = self._process
        if process is None:
            return
        if process.returncode is None and self.stop_s:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            until = time.monotonic() + self.stop_s
            while process.returncode is None and time.monotonic() < until and not at_once():
                await asyncio.sleep(PROBE_S)
        self._kill_all()
        await process.wait()

    async def _spawn(self) -> Launch:
        port = self.fixed_port or free_port(self.host)
        launch = self.launch(port)
        self.url = f"http://{self.host}:{port}"
        with suppress(FileNotFoundError):
            (self.folder / WORD).unlink()
        said = (self.folder / "engine.txt").open("ab")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *launch.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=launch.env,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which drains
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        except OSError as fault:
            raise ServeError(f"{launch.argv[0]} could not be started: {fault.strerror}.") from fault
        finally:
            said.close()
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(OSError, RuntimeError):  # it may have ended already: `_up` says so
            stdin.write(launch.stdin)
            await stdin.drain()
        stdin.close()
        return launch

    async def _up(self, launch: Launch) -> None:
        """Wait until it answers. Raises ServeError where it ends before, or takes too long."""
        start = time.monotonic()
        process = self._process
        assert process is not None
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=min(5.0, launch.start_timeout_s))) as session:
            while True:
                if process.returncode is not None:
                    self._kill_all()
                    raise self._failure(f"The engine server ended with code {process.returncode} before it was ready.")
                if await answers(session, self.url + launch.ready_path):
                    break
                if time.monotonic() - start > launch.start_timeout_s:
                    self._kill_all()
                    raise self._failure(f"The engine server was not ready after {launch.start_timeout_s:g} s.")
                await asyncio.sleep(PROBE_S)
        await self.before_ready()
        self.load_seconds = time.monotonic() - start
        self._ready_path = launch.ready_path
        self.ready.set()

    def _failure(self, what: str) -> ServeError:
        """What it left for the user, else the end of what it printed."""
        word = self.folder / WORD
        if word.is_file():
            message, _, mend = word.read_text(encoding="utf-8").partition("\nTry: ")
            return ServeError(message, next_step=mend)
        printed = self.folder / "engine.txt"
        tail = printed.read_bytes()[-TAIL:].decode("utf-8", "replace").strip() if printed.is_file() else ""
        return ServeError(f"{what}\n{tail}" if tail else what, next_step=f"see {printed}")

    async def _watch(self) -> None:
        """Start it again whenever it ends, or does not answer any more."""
        wait_s = FIRST_WAIT_S
        while True:
            process = self._process
            assert process is not None
            up_since = time.monotonic()
            await self._until_gone(process)
            self.ready.clear()
            self._kill_all()
            self.restarts += 1
            self.on_restart()
            if time.monotonic() - up_since > CALM_S:
                wait_s = FIRST_WAIT_S
            log.warning("the engine server ended (code %s); started again in %.1f s", process.returncode, wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            try:
                await self._up(await self._spawn())
                log.warning("the engine server is ready again after %.1f s", self.load_seconds)
            except LargeForgeError as fault:
                log.error("the engine server did not come up: %s", fault)
            except Exception:  # no file handle left, no folder: whatever it is, the next try comes
                log.exception("the engine server could not be started")
                self._kill_all()  # one that runs and is never ready would be watched for ever

    async def _until_gone(self, process: asyncio.subprocess.Process) -> None:
        """Return when it has ended; one that has not answered a few looks in a row is ended."""
        ended = asyncio.ensure_future(process.wait())
        missed = 0
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S)) as session:
                while True:
                    done, _ = await asyncio.wait((ended,), timeout=LOOK_S)
                    if done:
                        return
                    missed = 0 if await answers(session, self.url + self._ready_path) else missed + 1
                    if missed >= LOOKS:
                        log.error("the engine server does not answer any more: it is ended")
                        self._kill_all()
                        missed = 0
        finally:
            ended.cancel()

    def _kill_all(self) -> None:
        """Kill what is left of its session: its own children too."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


async def _nothing() -> None:
    """What is to be done before a child counts as ready, where nobody says otherwise."""


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        async with session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return False
