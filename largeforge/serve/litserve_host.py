"""LitServe as host of one engine: its processes and its wire between them; the HTTP that it answers is `engine_app`.

    main process (LitServer.run) -> API process (uvicorn: EngineApp over a Courier) <-> worker process (the engine, EngineLoop)

Of LitServe 0.2.19 this uses: LitAPI.setup, a LitLoop of our own, a LitSpec that holds the routes, and the queues between. Its own
loops answer one request at a time or by batches that wait for each other, its OpenAISpec leaks, a client that goes away goes on being
answered, and a dead worker leaves its requests hanging (measured; `shared/facts.md`); so:
- requests and cancellations go over the request queue; answers come back as one message for whatever was said meanwhile, under the name "*".
- the worker says hello with its pid, and the API process watches that process: when it dies, everybody is told within milliseconds,
  and the whole engine server ends, to be started again by whoever supervises it.
- every process dies with its parent, so that a kill -9 leaves none.
Private names touched (tests/serve/test_litserve_host.py): LitServer._start_server and lifespan, LitLoop.run's arguments, the queues' messages,
response_buffer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import litserve
from litserve.loops.base import LitLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, LoopResponseType
from starlette.requests import Request
from starlette.responses import Response

from largeforge.asgi import Receive, Scope, Send
from largeforge.chat import ChatRequest, Delta, Load
from largeforge.contract import Engine
from largeforge.errors import EngineError, LargeForgeError
from largeforge.process import die_with_parent, spare_what_stays
from largeforge.serve.engine_app import EngineApp
from largeforge.serve.hosting import Hosted, Hosting

log = logging.getLogger("largeforge.serve")
EVERYBODY = "*"  # the one entry of LitServe's response buffer
LAST_WORDS_S = 0.2  # for the answers that say so when a worker has died
API_PROCESS = 0
DIED = "The engine died; it is started again."


def serve(hosting: Hosting) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered then is finished first."""
    os.register_at_fork(after_in_child=partial(die_with_parent, os.getpid()))  # the manager's process and the API's are forked; the worker says it itself
    server = _Server(EngineAPI(hosting), accelerator="cpu", workers_per_device=1, timeout=False, disable_openapi_url=True)
    server.uvicorn_graceful_timeout = int(hosting.drain_s)

    def stop(number: int, frame: Any) -> None:
        server.stopping = True
        raise KeyboardInterrupt  # what LitServe drains at; a plain SIGTERM would leave its children behind

    signal.signal(signal.SIGTERM, stop)
    server.run(
        host="127.0.0.1" if hosting.host in ("127.0.0.1", "localhost") else hosting.host,
        port=hosting.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
        timeout_keep_alive=75,
    )


class _Server(litserve.LitServer):  # type: ignore[misc]
    """LitServe's, which ends when its API process does: nobody else notices, and that socket, which others hold too, would take connections for ever."""

    stopping = False

    def _start_server(self, *arguments: Any, **how: Any) -> Any:
        workers = super()._start_server(*arguments, **how)
        threading.Thread(target=self._end_without, args=(workers[API_PROCESS],), name="largeforge-watch", daemon=True).start()
        return workers

    def _end_without(self, api: Any) -> None:
        multiprocessing.connection.wait([api.sentinel])
        if not self.stopping:
            os.killpg(os.getpgid(0), signal.SIGKILL)


class EngineAPI(litserve.LitAPI):  # type: ignore[misc]
    """Makes the engine in the worker."""

    def __init__(self, hosting: Hosting) -> None:
        super().__init__(stream=True, spec=Wire(hosting), loop=EngineLoop())
        self.hosting = hosting
        self.hosted: Hosted | None = None

    def setup(self, device: str) -> None:
        """Load the model; what is wrong with it is left where the supervisor finds it."""
        parent = multiprocessing.parent_process()
        die_with_parent(parent.pid if parent is not None else None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
        start = time.monotonic()
        try:
            self.hosted = self.hosting.make()
        except LargeForgeError as fault:
            self.hosting.leave_word(str(fault))
            raise
        self.hosted.load_seconds = time.monotonic() - start
        spare_what_stays()

    async def health(self) -> bool:
        """In the API process: whether the worker answers; not once it has died, though this process still says so to everybody."""
        app = self.spec.app
        if app is None or app.engine.dead:
            return app is None
        try:
            await app.engine.load()
        except (EngineError, asyncio.TimeoutError):
            return False
        return True

    def predict(self, x: Any) -> Any:
        """Not called: EngineLoop runs the engine."""
        yield x

    def encode_response(self, output: Any) -> Any:
        """Not called."""
        yield from output


class EngineLoop(LitLoop):  # type: ignore[misc]
    """The worker's side: reads the request queue, runs the engine, sends what is said."""

    def run(self, lit_api: EngineAPI, device: str, worker_id: int, request_queue: Any, transport: Any, workers_setup_status: Any, callback_runner: Any) -> None:
        """Answer until the parent ends this process."""
        assert lit_api.hosted is not None
        asyncio.run(_Worker(lit_api.hosted, request_queue, transport, worker_id).run())


class _Worker:
    def __init__(self, hosted: Hosted, requests: Any, transport: Any, worker_id: int) -> None:
        self.engine: Engine = hosted.engine
        self.hosted = hosted
        self.requests = requests
        self.transport = transport
        self.worker_id = worker_id
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.outbox: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self.said: list[Any] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._send, name="largeforge-sender", daemon=True).start()
        self.outbox.put([("hello", os.getpid(), self.hosted.about())])
        ended = asyncio.Event()
        threading.Thread(target=self._read, args=(loop, ended), name="largeforge-reader", daemon=True).start()
        await ended.wait()

    def _read(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
        """Take from the request queue, on a thread of its own: it blocks."""
        with suppress(EOFError, OSError):  # the manager's process ended: so does everything
            while True:
                message = self.requests.get()
                if message[1] is None:
                    break
                loop.call_soon_threadsafe(self._take, *message[1:])
        loop.call_soon_threadsafe(ended.set)

    def _take(self, name: str, asked_at: float, request: ChatRequest | tuple[str, Any]) -> None:
        if isinstance(request, ChatRequest):
            task = self.tasks[name] = asyncio.ensure_future(self._answer(name, request))
            task.add_done_callback(lambda _: self.tasks.pop(name))  # not in _answer: one that is cancelled before it began never runs
            return
        what, about = request
        if what == "cancel":
            if name in self.tasks:
                self.tasks[name].cancel()
            return
        try:
            self._say((name, what, self.engine.load() if what == "load" else self.hosted.token_ids(about)))
        except LargeForgeError as fault:
            self._say((name, "fault", fault.message, ("refused", "")))
        except Exception as fault:
            log.exception("%s failed", what)
            self._say((name, "fault", f"The engine failed: {type(fault).__name__}.", ("failed", "")))

    async def _answer(self, name: str, request: ChatRequest) -> None:
        try:
            async with aclosing(self.engine.generate(request)) as deltas:
                async for delta in deltas:
                    self._say((name, delta.text, delta.finish_reason, delta.usage, delta.logprobs))
        except LargeForgeError as fault:
            self._say((name, "fault", fault.message, (getattr(fault, "reason", "failed"), getattr(fault, "code", ""))))
        except Exception as fault:
            log.exception("answering failed")
            self._say((name, "fault", f"The engine failed: {type(fault).__name__}.", ("failed", "")))

    def _say(self, piece: Any) -> None:
        """Keep a piece; all that is said in one turn of the loop is sent together."""
        if not self.said:
            asyncio.get_running_loop().call_soon(self._flush)
        self.said.append(piece)

    def _flush(self) -> None:
        said, self.said = self.said, []
        self.outbox.put(said)

    def _send(self) -> None:
        """Send on a thread of its own, in one message what has come together while the last one was sent."""
        with suppress(EOFError, OSError):
            while True:
                pieces = self.outbox.get() or []
                with suppress(queue.Empty):
                    while True:
                        pieces += self.outbox.get_nowait() or []
                self.transport.send((EVERYBODY, (pieces, LitAPIStatus.OK, LoopResponseType.STREAMING, self.worker_id)), API_PROCESS)


class Courier:
    """The API process's side: an engine to EngineApp, which asks the worker.

    It stands in LitServe's response buffer as the one entry: `response_queue` and `event` are what LitServe's own task calls.
    """

    worker_id: int | None = None

    def __init__(self, ask: Callable[[Any], None], on_hello: Callable[[dict[str, Any]], None]) -> None:
        self.ask = ask
        self.on_hello = on_hello
        self.names = itertools.count()
        self.waiting: dict[str, asyncio.Queue[Any]] = {}
        self.response_queue = self.event = self
        self.dead = ""

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request; closing it stops it in the worker."""
        if self.dead:
            raise EngineError(self.dead)
        name = f"r{next(self.names)}"
        said: asyncio.Queue[Any] = asyncio.Queue()
        self.waiting[name] = said
        done = False
        try:
            self.ask((API_PROCESS, name, time.monotonic(), request))
            while not done:
                piece = await said.get()
                if piece[1] == "fault" and len(piece) == 4:
                    done = True
                    raise EngineError(piece[2], reason=piece[3][0], code=piece[3][1])
                _, text, reason, usage, logprobs = piece
                done = reason is not None
                yield Delta(text, reason, usage, logprobs)
        finally:
            del self.waiting[name]
            if not done and not self.dead:
                self.ask((API_PROCESS, name, 0.0, ("cancel", None)))

    async def load(self) -> Load:
        """How busy the worker's engine is, asked now."""
        found: Load = await self._one("load", None)
        return found

    async def tokenize(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, as the worker's engine reads it."""
        found: list[int] = await self._one("tokenize", messages)
        return found

    async def _one(self, what: str, about: Any) -> Any:
        """Ask the worker something that it answers in one piece."""
        if self.dead:
            raise EngineError(self.dead)
        name = f"o{next(self.names)}"
        said: asyncio.Queue[Any] = asyncio.Queue()
        self.waiting[name] = said
        try:
            self.ask((API_PROCESS, name, 0.0, (what, about)))
            piece = await asyncio.wait_for(said.get(), 30)
        finally:
            del self.waiting[name]
        if piece[1] == "fault":
            raise EngineError(piece[2], reason=piece[3][0], code=piece[3][1])
        return piece[2]

    # ---- what LitServe's task calls ----

    def append(self, response: Any) -> None:
        """Hand on what the worker said."""
        for piece in response[0]:
            if piece[0] == "hello":
                self.watch(piece[1])
                self.on_hello(piece[2])
                continue
            said = self.waiting.get(piece[0])
            if said is not None:
                said.put_nowait(piece)

    def set(self) -> None:
        """LitServe's word that something came: `append` has handed it on already."""

    # ---- the worker's end ----

    def watch(self, pid: int) -> None:
        """Have the kernel say when the worker ends."""
        try:
            end = os.pidfd_open(pid)
        except ProcessLookupError:
            return self.die(DIED)
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(end)
            os.close(end)
            self.die(DIED)

        loop.add_reader(end, ended)

    def die(self, why: str) -> None:
        """Tell everybody, then end the engine server: whoever supervises it starts another."""
        self.dead = why
        for name, said in self.waiting.items():
            said.put_nowait((name, "fault", why, ("unreachable", "")))

        def end() -> None:
            with suppress(ProcessLookupError):
                os.kill(os.getppid(), signal.SIGKILL)  # LitServe's own end takes seconds and waits for the dead
            os._exit(70)

        asyncio.get_running_loop().call_later(LAST_WORDS_S, end)


class Wire(LitSpec):  # type: ignore[misc]
    """The routes of the engine server; `setup` is called in the main process, before the API process is forked off."""

    def __init__(self, hosting: Hosting) -> None:
        super().__init__()
        self.api_path = "/v1/chat/completions"
        self.hosting = hosting
        self.app: EngineApp | None = None
        for path, methods in (
            ("/v1/chat/completions", ["POST"]),
            ("/v1/completions", ["POST"]),
            ("/v1/models", ["GET"]),
            ("/stats", ["GET"]),
            ("/pinned", ["GET"]),
            ("/tokenize", ["POST"]),
        ):
            self.add_endpoint(path, self.endpoint, methods)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        # the worker needs none of these, and they cannot be sent
        return {**state, "app": None, "response_buffer": None, "request_queue": None, "data_streamer": None, "_endpoints": []}

    @property
    def stream(self) -> bool:
        return True

    def setup(self, server: Any) -> None:
        """Stand in LitServe's response buffer."""
        super().setup(server)
        requests = self.request_queue
        assert requests is not None
        app = EngineApp.of(self.hosting, None)

        def learn(about: dict[str, Any]) -> None:
            app.learn(about)
            spare_what_stays()

        courier = Courier(requests.put, learn)
        app.engine = courier
        self.app = app
        server.response_buffer[EVERYBODY] = courier

    async def endpoint(self, request: Request) -> Response:
        """Hand the request to EngineApp, body unread."""
        assert self.app is not None
        return _Handed(self.app)


class _Handed(Response):
    """A response that another ASGI app writes."""

    def __init__(self, app: EngineApp) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
