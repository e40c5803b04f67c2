"""The one bridge between engines, which are async, and everything else: many requests in, their answers out in order.

Nobody else runs an event loop. There is one, in a thread of its own, while somebody asks; what is asked inside of what is
asked shares it. Knows nothing about how an engine answers, nor what answers are for.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from largeforge.chat import Answer, ChatRequest, Delta, Failure, TokenLogprob
from largeforge.errors import EngineError

if TYPE_CHECKING:
    from largeforge.contract import Engine
    from largeforge.engine.journal import Journal, Ticket
    from largeforge.engine.limits import Budget

STOP_POLL_S = 0.25  # how often `stop` is asked while an answer is waited for
DOWN_AFTER = 3  # unreachable at the start, without one answer: nobody is there
AHEAD = 2  # requests pulled per request running: the next ones are at hand when one ends, while the first is waited for
GO_ON = "once it answers, the same command with resume=auto: no answer is paid for twice"
Found = Answer | Failure
Result = TypeVar("Result")


class ShutOut(EngineError):
    """An error that every request would meet: a wrong key, a wrong URL, a model that is not there."""


def never() -> bool:
    return False


def answers(
    engine: Engine,
    requests: Iterable[ChatRequest],
    *,
    in_flight: int,
    journal: Journal | None = None,
    budget: Budget | None = None,
    stop: Callable[[], bool] = never,
) -> Iterator[Answer | Failure]:
    """Yield what an engine answers, in the order asked; ends with the requests, or where `stop` says so.

    Requests are pulled in the caller's thread, and request n only once answer n - 2 * in_flight has been taken: what a
    generator of requests sees of earlier answers does not depend on who was faster. Closing the iterator cancels what runs.

    Args:
        engine: closed when the last one who asks it has ended.
        requests: may be endless.
        in_flight: how many run at once at most, >= 1.
        journal: a finished answer is in it before any is yielded; what is in it already is not asked again.
        budget: once spent, what is not in the journal is Failure("budget"); None is the engine's own, where it has one.
            Answers from the journal count too: they were paid for.
        stop: asked between answers, and four times a second while one is waited for.

    Raises:
        EngineError: the engine is down altogether.
    """
    budget = budget or getattr(engine, "budget", None)
    with _BRIDGE.open(engine):
        asking = _Asking(engine, in_flight=in_flight, journal=journal, budget=budget)
        window: deque[Future[Found]] = deque()
        source = iter(requests)
        more = True
        try:
            while not stop():
                while more and len(window) < AHEAD * in_flight:
                    request = next(source, None)
                    if request is None:
                        more = False
                    else:
                        window.append(asking.begin(request))
                if window and not _finished(window[0], stop):
                    return
                asking.check_up(all_asked=not window)
                if not window:
                    return
                yield window.popleft().result()
        finally:
            _BRIDGE.end(asking.tasks)


def every_answer(engine: Engine, requests: Sequence[ChatRequest], *, in_flight: int) -> Iterator[Answer]:
    """Yield answers in the order asked. Raises EngineError for the first that cannot be had."""
    for found in answers(engine, requests, in_flight=in_flight):
        if isinstance(found, Failure):
            raise EngineError(found.message, reason=found.reason)
        yield found


def stream(engine: Engine, request: ChatRequest) -> Iterator[Delta]:
    """Yield one answer as it comes; closing the iterator stops it. Raises EngineError."""
    pieces: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
    tasks: set[asyncio.Task[None]] = set()

    async def pump() -> None:
        try:
            async with aclosing(engine.generate(request)) as deltas:
                async for delta in deltas:
                    pieces.put(delta)
        finally:
            pieces.put(None)

    with _BRIDGE.open(engine):
        pumped = _BRIDGE.begin(pump(), tasks)
        try:
            while (delta := pieces.get()) is not None:
                yield delta
            pumped.result()
        finally:
            _BRIDGE.end(tasks)


class _Asking:
    """The requests of one caller; `_ask` runs in the bridge's thread, everything else in the caller's."""

    def __init__(self, engine: Engine, *, in_flight: int, journal: Journal | None, budget: Budget | None) -> None:
        self.engine = engine
        self.journal = journal
        self.budget = budget
        self.in_flight = in_flight
        self.slots = asyncio.Semaphore(in_flight)
        self.tasks: set[asyncio.Task[Found]] = set()
        self.num_asked = 0
        self.num_heard = 0  # answered, or refused: somebody is there
        self.unreachable: list[EngineError] = []  # since somebody was last heard
        self.shut_out: ShutOut | None = None

    def begin(self, request: ChatRequest) -> Future[Found]:
        """Ask, unless the journal knows the answer."""
        ticket = self.journal.ticket(self.engine.name, request) if self.journal is not None else None
        known = self.journal.find(ticket) if self.journal is not None and ticket is not None else None
        if known is None:
            self.num_asked += 1
            return _BRIDGE.begin(self._ask(request, ticket), self.tasks)
        if self.budget is not None:
            self.budget.take(known.usage)
        found: Future[Found] = Future()
        found.set_result(known)
        return found

    async def _ask(self, request: ChatRequest, ticket: Ticket | None) -> Found:
        async with self.slots:
            if self.budget is not None and self.budget.spent:
                return Failure("budget", f"Not asked: {self.budget.spent}.")
            try:
                answer = await whole(self.engine, request)
            except EngineError as fault:
                self._note(fault)
                return Failure(cast(Literal["unreachable", "refused", "malformed"], fault.reason), fault.message)
            self.num_heard += 1
            self.unreachable.clear()
            if self.journal is not None and ticket is not None:
                self.journal.write(ticket, answer)
            if self.budget is not None:
                self.budget.take(answer.usage)
            return answer

    def _note(self, fault: EngineError) -> None:
        if isinstance(fault, ShutOut):
            self.shut_out = self.shut_out or fault
        if fault.reason == "unreachable":
            self.unreachable.append(fault)
        else:
            self.num_heard += 1
            self.unreachable.clear()

    def check_up(self, *, all_asked: bool) -> None:
        """Raise EngineError where the engine is down altogether: the first few all unreachable, or more in a row than can be running."""
        if self.shut_out is not None:
            raise self.shut_out
        row = len(self.unreachable)
        enough = self.in_flight + DOWN_AFTER if self.num_heard else self.num_asked if all_asked else DOWN_AFTER
        if row and row >= enough:
            which = f"{row} requests in a row" if self.num_heard else f"the first {row} requests" if row > 1 else "the only request"
            raise EngineError(f"{self.engine.name} is down: {which} got no answer. {self.unreachable[0].message}", next_step=GO_ON)


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel what runs, and wait until it has ended."""
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _finished(future: Future[Any], stop: Callable[[], bool]) -> bool:
    """Wait for one answer; False where `stop` says so first."""
    while not future.done():
        wait([future], timeout=STOP_POLL_S)
        if not future.done() and stop():
            return False
    return True


async def whole(engine: Engine, request: ChatRequest) -> Answer:
    """Return one whole answer: asked for as such where the engine can (`answer`), else joined from its pieces."""
    ask = getattr(engine, "answer", None)
    if ask is not None:
        return cast(Answer, await ask(request))
    pieces: list[str] = []
    logprobs: list[TokenLogprob] = []
    async with aclosing(engine.generate(request)) as deltas:
        async for delta in deltas:
            pieces.append(delta.text)
            logprobs.extend(delta.logprobs)
            if delta.finish_reason is not None and delta.usage is not None:
                return Answer("".join(pieces), delta.finish_reason, delta.usage, tuple(logprobs))
    raise EngineError(f"{engine.name} ended an answer without saying why and what it cost.", reason="malformed")


class _Bridge:
    """The event loop, in a thread that lives while anybody asks; and how many ask each engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._askers: dict[int, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def open(self, engine: Engine) -> Iterator[None]:
        """Have the loop run while the block does; the last one to leave an engine closes it, the last one of all ends the loop."""
        with self._lock:
            if not self._askers:
                self._start()
            self._askers[id(engine)] = self._askers.get(id(engine), 0) + 1
        try:
            yield
        finally:
            if threading.current_thread() is self._thread:  # a forgotten iterator that was collected in here: it cannot wait for itself
                threading.Thread(target=self._leave, args=(engine,)).start()
            else:
                self._leave(engine)

    def begin(self, work: Coroutine[Any, Any, Result], tasks: set[asyncio.Task[Result]]) -> Future[Result]:
        """Start a coroutine in the loop; its task is in `tasks` while it runs. What it returns or raises is the future's."""
        assert self._loop is not None
        future: Future[Result] = Future()
        self._loop.call_soon_threadsafe(self._start_task, work, tasks, future)
        return future

    def end(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Cancel what runs, and wait until it has ended."""
        if threading.current_thread() is self._thread:  # see `open`: it cannot wait for itself
            for task in tasks:
                task.cancel()
        else:
            self.run(_ended(tasks))

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the loop and wait for it."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _start_task(self, work: Coroutine[Any, Any, Result], tasks: set[asyncio.Task[Result]], future: Future[Result]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work)
        tasks.add(task)

        def end(task: asyncio.Task[Result]) -> None:
            tasks.discard(task)
            if task.cancelled():
                future.cancel()
            elif (fault := task.exception()) is not None:
                future.set_exception(fault)
            else:
                future.set_result(task.result())

        task.add_done_callback(end)

    def forget(self) -> None:
        """In a child process that was forked while somebody asked: the thread is not there."""
        self.__init__()  # type: ignore[misc]

    def _start(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="largeforge-answers", daemon=True)
        self._thread.start()

    def _leave(self, engine: Engine) -> None:
        with self._lock:
            self._askers[id(engine)] -= 1
            if self._askers[id(engine)]:
                return
            del self._askers[id(engine)]
            try:
                self.run(engine.close())
            finally:
                if not self._askers:
                    self._stop()

    def _stop(self) -> None:
        assert self._loop is not None and self._thread is not None
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None


_BRIDGE = _Bridge()
os.register_at_fork(after_in_child=_BRIDGE.forget)
