"""What every server does at its start and end: sockets, signals, an event loop, TLS. Which pieces run says the choice: all, door_only, engine_only.

Knows no model and no guard: they come as callables from the story.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import uvicorn

from largeforge.asgi import App
from largeforge.contract import Launch, Store
from largeforge.errors import InputError, ServeError
from largeforge.run import Run
from largeforge.serve.asking import Defaults
from largeforge.serve.config import DoorConfig
from largeforge.serve.door import Concurrent, Door
from largeforge.serve.upstream import Upstream

FINISH_S = 5  # for connections that are open and ask nothing, at the end
LONGEST_WAIT_FOR_SOCKETS = 2048


Prove = Callable[[Upstream, str], Coroutine[Any, Any, str]]


@dataclass(frozen=True)
class Parts:
    """What a story brings to a server.

    Args:
        run: of the story.
        launch: starts the engine server, for a port, a key and a folder; None where it stands elsewhere.
        elsewhere: (url, key, the model's name there) of an engine that stands elsewhere; None where it is started here.
        name: what requests call the model.
        adapters: names of its adapters.
        defaults: what holds where a request does not say; None where the engine has its own.
        guarded: puts the guards around an app: (app, meters, whether a key is required) -> (app, the guard that counts what runs).
        meters: what is measured.
        protocol: speaks HTTP on a connection, with limits on a request's head; uvicorn's own has none.
        max_body_bytes: of a request, whichever way it comes.
        asks_for_keys: whether a key is asked for, by whether others than this machine reach the door.
        store: who keeps keys; opened already.
        prove: compares what an endpoint says with the pinned answers; returns a line for the user, raises CheckFailed. None proves nothing.
        adapter: the folder of an adapter that comes while it runs, of its name and place; raises InputError. None where none comes.
    """

    run: Run
    launch: Callable[[str, int, str, Path], Launch] | None
    elsewhere: tuple[str, str, str] | None
    name: str
    adapters: tuple[str, ...]
    defaults: Defaults | None
    guarded: Callable[[App, Any, bool], tuple[App, Concurrent]]
    meters: Any
    protocol: type[asyncio.Protocol]
    max_body_bytes: int
    asks_for_keys: Callable[[bool], bool]
    store: Store | None
    prove: Prove | None = None
    adapter: Callable[[str, str], Path] | None = None


def new_key() -> str:
    """A key between a door and its engine server, for as long as they run."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run in an event loop of uvloop's."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) if hasattr(asyncio, "Runner") else _OldRunner(uvloop.new_event_loop) as runner:
        runner.run(work)


class _OldRunner:
    """asyncio.Runner, which Python 3.10 lacks: as much of it as is needed."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = factory()

    def __enter__(self) -> _OldRunner:
        asyncio.set_event_loop(self.loop)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)


class Stops:
    """SIGTERM and Ctrl-C: the first asks for an orderly end, the second for one at once; more change nothing.

    Stands around what cleans up, too: a signal that came then would end the process with things half done. Once a stop was asked for, signals
    are ignored until the run has its own handlers back (`largeforge.run.signals_to`).
    """

    def __init__(self, run: Run) -> None:
        self.asked = asyncio.Event()
        self.at_once = False
        self._run = run
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        loop = asyncio.get_running_loop()

        def ask(*_: object) -> None:
            loop.call_soon_threadsafe(self._ask)

        for number in (signal.SIGINT, signal.SIGTERM):  # not by the loop: it puts the default handler back for a moment, which ends the process
            self._before[number] = signal.signal(number, ask)
        if self._run.stop_asked:  # before there was a loop
            self.asked.set()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.asked.is_set() else handler)

    async def unless_asked(self, work: Awaitable[Any]) -> bool:
        """Do work; give it up and return False where a stop is asked for meanwhile."""
        task, asked = asyncio.ensure_future(work), asyncio.ensure_future(self.asked.wait())
        try:
            await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            await task
            return True
        finally:
            asked.cancel()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def _ask(self) -> None:
        if self.asked.is_set():
            self.at_once = True
            return
        self.asked.set()
        self._run.progress.say("Stopping: what runs is finished; once more stops at once.")


def listening(host: str, port: int, key: str = "port") -> socket.socket:
    """Return a socket that listens. Raises ServeError, naming the key of the config, where that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as fault:
        raise ServeError(f"serve.host={host} is no address of this machine: {fault.strerror}.", next_step="serve.host=127.0.0.1") from fault
    one = socket.socket(family, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(address)
        one.listen(LONGEST_WAIT_FOR_SOCKETS)
    except OSError as fault:
        one.close()
        taken = fault.errno == 98
        what = f"Port {port} of {host} is taken" if taken else f"{host}:{port} cannot be listened on: {fault.strerror}"
        other = f"serve.{key}={port + 10 if port < 65500 else 8000}, or 0 for any free one" if key == "port" else f"serve.{key}=<another>, or 0 for no gRPC"
        raise ServeError(f"{what}.", next_step=other if taken else "serve.host=127.0.0.1, or an address of this machine") from fault
    one.setblocking(False)
    return one


def certificate(config: DoorConfig) -> tuple[str, str] | None:
    """Return the files of certificate and key, looked at; None where there are none. Raises InputError."""
    if config.certificate is None and config.private_key is None:
        return None
    if config.certificate is None or config.private_key is None:
        missing = "private_key" if config.private_key is None else "certificate"
        raise InputError(f"TLS needs both files: serve.{missing} is null.", next_step=f"serve.{missing}=<a PEM file>")
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(Path(config.certificate).read_bytes())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.certificate, config.private_key)
    except OSError as fault:
        what = "do not fit together, or are no PEM" if isinstance(fault, ssl.SSLError) else fault.strerror
        raise InputError(f"serve.certificate={config.certificate} with serve.private_key={config.private_key}: {what}.") from fault
    except ValueError as fault:
        raise InputError(f"serve.certificate={config.certificate} is no certificate in PEM: {fault}.") from fault
    now = datetime.now(timezone.utc)
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        raise InputError(
            f"serve.certificate={config.certificate} is valid from {found.not_valid_before_utc:%Y-%m-%d} to {found.not_valid_after_utc:%Y-%m-%d}, not now.",
            next_step="renew it, then the same command",
        )
    return config.certificate, config.private_key


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: `Stops` has them."""

    @contextmanager
    def capture_signals(self) -> Any:
        yield


def _about_the_server(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's is: what clients send wrong would fill the terminal, with a traceback for each text that is no UTF-8."""
    return record.levelno >= logging.ERROR and not str(record.msg).startswith("Invalid UTF-8")


class Listening:
    """The door on its sockets: HTTP, WebSocket, gRPC."""

    def __init__(self, config: DoorConfig, *, protocol: type[asyncio.Protocol]) -> None:
        self.config = config
        self.protocol = protocol
        self.tls = certificate(config)
        self.socket = listening(config.host, config.port)
        self.port = int(self.socket.getsockname()[1])
        self.grpc_port = self._for_grpc()
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None
        self._grpc: Any = None

    def _for_grpc(self) -> int:
        """The port of gRPC, looked at before anything is loaded: as told, else the next one, else any free one; 0 is none."""
        wanted = self.config.grpc_port
        if wanted == 0:
            return 0
        try:
            one = listening(self.config.host, self.port + 1 if wanted is None else wanted, "grpc_port")
        except (ServeError, OverflowError):
            if wanted is not None:
                self.socket.close()
                raise
            one = listening(self.config.host, 0, "grpc_port")  # another server has the next one
        with one:
            return int(one.getsockname()[1])

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = self.config.host if self.config.host not in ("0.0.0.0", "::") else "127.0.0.1"
        return f"{'https' if self.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self, door: Door) -> None:
        """Answer from now on. Raises ServeError."""
        config = uvicorn.Config(
            door,
            http=self.protocol,
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks where a request came from, and who is on loopback could say anything
            timeout_keep_alive=75,
            timeout_graceful_shutdown=FINISH_S,
            ws_max_size=2 * door.max_message_bytes,  # beyond it the socket is closed; up to there it is told what is wrong
            backlog=LONGEST_WAIT_FOR_SOCKETS,
            ssl_certfile=self.tls[0] if self.tls else None,
            ssl_keyfile=self.tls[1] if self.tls else None,
        )
        logging.getLogger("uvicorn.error").addFilter(_about_the_server)
        config.load()
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        self._server = _Uvicorn(config)
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self.socket]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise ServeError("The door's HTTP server ended before it was ready.")
            await asyncio.sleep(0.01)
        if self.grpc_port:
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is raised
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # children are other programs: nothing of gRPC goes on in them
            from largeforge.serve.grpc import GrpcServer  # loads grpc: where it is asked for

            self._grpc = GrpcServer(door, ready=lambda: door.state == "ready", authorise=door.authorise, max_message_bytes=door.max_message_bytes)
            await self._grpc.start(self.config.host, self.grpc_port, tls=self.tls)

    async def stop(self) -> None:
        """Close every connection."""
        if self._grpc is not None:
            await self._grpc.stop(1.0)
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            with suppress(asyncio.TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(self._serving), FINISH_S + 1)
            self._server.force_exit = True
            with suppress(asyncio.CancelledError):
                await self._serving

    def close(self) -> None:
        """Let the port go, where it was never answered on."""
        self.socket.close()


def greeting(listening: Listening, *, name: str, seconds: float, proof: str, keys: bool, alone: bool) -> str:
    """What a user reads when it is ready: where it is, how to ask it."""
    url = listening.url
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello!"}]})
    key = " -H 'Authorization: Bearer <key>'" if keys else ""
    insecure = " --cacert <your CA>" if listening.tls else ""
    told = "not asked for: only this machine gets in" if alone else f"not asked for: EVERYBODY who reaches {listening.config.host} gets in"
    if keys:
        told = "asked for; make one: python -m largeforge task=keys create=<name>"
    lines = [
        f"\nready in {seconds:.1f} s: {name} at {url}/v1",
        proof or "  proof    none: nothing was compared with the model",
        f"  talk     {url}/",
        f"  try      curl{insecure} {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'",
        f"  docs     {url}/docs{'   (with a key)' if keys else ''}",
        f"  gRPC     {url.partition('://')[2].rpartition(':')[0]}:{listening.grpc_port}" if listening.grpc_port else "  gRPC     off",
        f"  keys     {told}",
        "Ctrl-C or SIGTERM stops it; what runs is finished first.",
    ]
    return "\n".join(lines)
