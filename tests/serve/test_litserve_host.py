"""The engine server's two ends, with queues of this process between them: nothing is left in either table. And what of LitServe they stand on."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import queue
import random
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import litserve
import pytest
from litserve.loops.base import LitLoop
from litserve.server import LitServer, response_queue_to_buffer
from litserve.specs.base import LitSpec
from litserve.transport.base import MessageTransport
from litserve.transport.process_transport import MPQueueTransport
from litserve.utils import LitAPIStatus, LoopResponseType

from largeforge.chat import ChatRequest, Delta, Load, Message, Usage
from largeforge.errors import EngineError
from largeforge.serve.hosting import Hosted, Hosting
from largeforge.serve.litserve_host import EVERYBODY, Courier, EngineAPI, EngineLoop, Wire, _Worker


@dataclass
class Counting:
    """An engine that says one word a turn of the loop, and counts who is being answered."""

    name: str = "counting"
    running: int = 0
    begun: int = 0
    ended: list[str] = field(default_factory=list)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        self.running += 1
        self.begun += 1
        how = "left"
        try:
            text = request.messages[0].content
            if text == "refuse":
                raise EngineError("no", reason="refused")
            if text == "break":
                raise ValueError("broken")
            for number in range(request.max_tokens):
                await asyncio.sleep(0)
                last = number == request.max_tokens - 1
                yield Delta(f"{number} ", "length" if last else None, Usage(1, request.max_tokens) if last else None)
            how = "done"
        finally:
            self.running -= 1
            self.ended.append(how)

    def load(self) -> Load:
        return Load(active=self.running)


def request(text: str = "go", *, max_tokens: int = 5) -> ChatRequest:
    return ChatRequest((Message("user", text),), max_tokens=max_tokens)


class Ends:
    """A Courier and a _Worker that hear each other."""

    def __init__(self) -> None:
        self.engine = Counting()
        self.requests: queue.Queue[Any] = queue.Queue()
        self.loop = asyncio.get_running_loop()
        self.courier = Courier(self.requests.put, lambda about: None)
        self.worker = _Worker(Hosted(engine=self.engine), self.requests, self, 0)
        self.running = asyncio.ensure_future(self.worker.run())

    def send(self, message: Any, consumer_id: int) -> None:
        """What the worker's transport does, on the worker's thread; its hello would have the courier watch this process."""
        name, (pieces, *rest) = message
        assert (name, consumer_id, rest[:2]) == (EVERYBODY, 0, [LitAPIStatus.OK, LoopResponseType.STREAMING])
        self.loop.call_soon_threadsafe(self.courier.append, ([piece for piece in pieces if piece[0] != "hello"], LitAPIStatus.OK))

    async def settle(self) -> None:
        """Wait until nothing is asked or answered."""
        for _ in range(1000):
            await asyncio.sleep(0.005)
            if not self.requests.qsize() and not self.engine.running and not self.worker.tasks and not self.courier.waiting:
                return

    async def close(self) -> None:
        self.requests.put((0, None, 0.0, None))
        await asyncio.wait_for(self.running, 10)


async def texts(courier: Courier, asked: ChatRequest, *, leave_after: int | None = None) -> str:
    """What is said; who leaves closes the generator, as the app does."""
    said = []
    stream = courier.generate(asked)
    try:
        async for delta in stream:
            said.append(delta.text)
            if leave_after is not None and len(said) >= leave_after:
                break
    finally:
        await stream.aclose()
    return "".join(said)


def test_nothing_is_left_in_the_tables() -> None:
    """3,000 requests, of which a third are left before their first word, in the middle, or by a task that is cancelled at once."""

    async def run() -> None:
        ends = Ends()
        rng = random.Random(3)

        async def one(number: int) -> None:
            how = number % 6
            if how == 0:
                assert await texts(ends.courier, request(max_tokens=50), leave_after=rng.randrange(1, 40)) != ""
            elif how == 1:
                task = asyncio.ensure_future(texts(ends.courier, request(max_tokens=50)))
                for _ in range(rng.randrange(0, 4)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            elif how == 2:
                with pytest.raises(EngineError, match="no" if number % 12 == 2 else "The engine failed: ValueError"):
                    await texts(ends.courier, request("refuse" if number % 12 == 2 else "break"))
            elif how == 3:
                assert (await ends.courier.load()).active >= 0
            else:
                assert await texts(ends.courier, request()) == "0 1 2 3 4 "

        for begin in range(0, 3000, 50):
            await asyncio.gather(*(one(number) for number in range(begin, begin + 50)))
        await ends.settle()
        assert (ends.courier.waiting, ends.worker.tasks, ends.engine.running, ends.worker.said) == ({}, {}, 0, [])
        assert ends.engine.ended.count("left") > 500 and len(ends.engine.ended) == ends.engine.begun
        await ends.close()

    asyncio.run(run())


def test_a_request_that_is_cancelled_before_it_began() -> None:
    """Request and cancellation may be taken in one turn of a busy loop: the task then never begins, and must not stay in the table."""

    async def run() -> None:
        ends = Ends()
        for number in range(100):
            ends.worker._take(f"r{number}", 0.0, request())
            ends.worker._take(f"r{number}", 0.0, ("cancel", None))
        ends.worker._take("nobody", 0.0, ("cancel", None))
        await ends.settle()
        assert ends.worker.tasks == {} and ends.engine.begun == 0
        await ends.close()

    asyncio.run(run())


def test_a_question_that_the_engine_fails_at_is_answered() -> None:
    """Silence would hold /stats for half a minute."""

    async def run() -> None:
        ends = Ends()
        ends.engine.load = lambda: 1 // 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await asyncio.wait_for(ends.courier.load(), 5)
        with pytest.raises(EngineError, match="has no tokenizer"):
            await asyncio.wait_for(ends.courier.tokenize([]), 5)
        await ends.close()

    asyncio.run(run())


def test_a_worker_that_dies_is_told_to_everybody() -> None:
    """Within the blink of an eye, also where it was dead before anybody could watch it."""

    class Told(Courier):
        def die(self, why: str) -> None:
            self.dead = why  # the real one ends this process: test_serving_nano
            for name, said in self.waiting.items():
                said.put_nowait((name, "fault", why, ("unreachable", "")))

    async def run() -> None:
        learnt: list[Any] = []
        courier = Told(lambda message: None, learnt.append)
        with subprocess.Popen(["sleep", "600"]) as child:
            courier.append(([("hello", child.pid, {"engine": "x"})], LitAPIStatus.OK))
            waiting = [asyncio.ensure_future(texts(courier, request())) for _ in range(20)]
            await asyncio.sleep(0.05)
            child.kill()
            found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert learnt == [{"engine": "x"}]
        assert {type(one) for one in found} == {EngineError} and {one.reason for one in found if isinstance(one, EngineError)} == {"unreachable"}
        assert courier.waiting == {}
        with pytest.raises(EngineError, match="died"):
            await texts(courier, request())
        late = Told(lambda message: None, learnt.append)
        late.append(([("hello", child.pid, {})], LitAPIStatus.OK))
        assert late.dead

    asyncio.run(run())


# ---- LitServe 0.2.19, as far as it is touched ----


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@contextmanager
def wired(tmp_path: Path) -> Iterator[tuple[LitServer, Wire]]:
    """A LitServer that holds our spec, not started."""
    hosting = Hosting("litserve", Counting, "127.0.0.1", 0, "key", "nano", (), (256, 0.7, 0.9, 50), tmp_path)  # type: ignore[arg-type]
    api = EngineAPI(hosting)
    yield litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False, disable_openapi_url=True), api.spec


def test_the_version() -> None:
    """Another one may have moved what the tests below pin: run them, then write it here and in pyproject.toml."""
    assert litserve.__version__ == "0.2.19"


def test_the_loop_and_its_arguments() -> None:
    names = ["self", "lit_api", "device", "worker_id", "request_queue", "transport", "workers_setup_status", "callback_runner"]
    assert parameters(LitLoop.run) == names == parameters(EngineLoop.run)
    assert not inspect.iscoroutinefunction(EngineLoop.run)  # LitLoop would run it in an event loop of its own, beside a task that batches
    assert parameters(MessageTransport.send) == parameters(MPQueueTransport.send) == ["self", "item", "consumer_id"]
    assert (LitAPIStatus.OK, LitAPIStatus.START, LoopResponseType.STREAMING.value) == ("OK", "START", "STREAMING")


def test_the_server_s_attributes(tmp_path: Path) -> None:
    with wired(tmp_path) as (server, spec):
        assert server.response_buffer == {} and server.uvicorn_graceful_timeout == 30
        assert parameters(server._get_request_queue) == ["api_path"] and hasattr(server, "data_streamer")
        assert parameters(LitServer.lifespan) == ["self", "app"]
        assert "return dict(enumerate(workers))" in inspect.getsource(LitServer._start_server)  # the API's process is the one of number 0
        assert [path for path, _, _ in spec.endpoints] == ["/v1/chat/completions", "/v1/completions", "/v1/models", "/stats", "/pinned", "/tokenize"]
        assert set(vars(LitSpec())) >= {"_endpoints", "api_path", "_server", "response_buffer", "request_queue", "response_queue_id"}


def test_the_spec_is_sent_to_the_worker_without_what_lives_here(tmp_path: Path) -> None:
    with wired(tmp_path) as (_, spec):
        spec.app, spec.response_buffer, spec.request_queue = (lambda: None), {"*": lambda: None}, (lambda: None)  # type: ignore[assignment]
        found = pickle.loads(pickle.dumps(spec))
        assert (found.app, found.response_buffer, found.request_queue, found.endpoints, found.hosting.name) == (None, None, None, [], "nano")


def test_what_the_worker_says_reaches_the_courier(tmp_path: Path) -> None:
    """LitServe's own task takes a message from the transport and hands it to the one entry of the response buffer."""

    courier = Courier(lambda message: None, lambda about: None)

    class Transport:
        def __init__(self) -> None:
            self.messages: list[Any] = [None, ("gone", ([], LitAPIStatus.OK, LoopResponseType.STREAMING, 0))]
            self.messages.append((EVERYBODY, ([("r0", "hi", "stop", Usage(1, 1), ())], LitAPIStatus.OK, LoopResponseType.STREAMING, 0)))

        async def areceive(self, consumer_id: int) -> Any:
            while not courier.waiting or not self.messages:
                await asyncio.sleep(0.01)
            return self.messages.pop(0)

    async def run() -> None:
        with wired(tmp_path) as (server, _):
            task = asyncio.ensure_future(response_queue_to_buffer(Transport(), {EVERYBODY: courier}, 0, server.litapi_connector))
            assert await asyncio.wait_for(texts(courier, request()), 5) == "hi"
            task.cancel()
            await task
        assert courier.worker_id is None  # what the watchdog of LitServe's looks at, and then leaves the entry alone

    asyncio.run(run())


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    test_a_worker_that_dies_is_told_to_everybody()
    assert len(os.listdir("/proc/self/fd")) <= before
