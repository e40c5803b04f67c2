"""Processes of this machine: a pool of fresh interpreters that each do one task after the other. Knows nothing about what the tasks do."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from largeforge.contract import Result, Task
from largeforge.errors import LargeForgeError
from largeforge.executor.config import LocalConfig

if TYPE_CHECKING:
    from largeforge.run import Run

STARTS = 3  # pools that are started before a task that kills its worker is given up
POLL_S = 0.5  # how long a stop may go unseen


class Local:
    """Runs tasks side by side; one worker, or one task, runs in this process.

    Args:
        config: how many processes.
    """

    def __init__(self, config: LocalConfig) -> None:
        self.config = config
        self.num_workers = config.num_workers or len(os.sched_getaffinity(0))
        self.workers: dict[str, int] = {}
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task], *, run: Run | None = None, title: str = "") -> Iterator[tuple[int, Result]]:
        """Yield (number of the task, its result) as tasks end (largeforge/contract.py)."""
        bar = run.progress.bar(title, total=len(tasks), unit="shards") if run is not None and len(tasks) > 1 else None
        try:
            alone = self.num_workers == 1 or len(tasks) <= 1
            source = Here().map(function, tasks, run=run) if alone else self._elsewhere(function, tasks, run)
            for number, result in source:
                if bar is not None:
                    bar.advance()
                yield number, result
        finally:
            if bar is not None:
                bar.close()

    def close(self) -> None:
        """Let the workers go; what they were doing is given up."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _elsewhere(self, function: Callable[[Task], Result], tasks: Sequence[Task], run: Run | None) -> Iterator[tuple[int, Result]]:
        left = list(range(len(tasks)))
        for start in range(1, STARTS + 1):
            try:
                for number, result in self._once(function, tasks, left, run):
                    left.remove(number)
                    yield number, result
                return
            except BrokenProcessPool as fault:
                self.close()
                if start == STARTS:
                    raise LargeForgeError(
                        f"A worker process died {STARTS} times (killed from outside, or out of memory); {len(left)} of {len(tasks)} tasks are left.",
                        next_step="the same command with resume=auto, and with fewer workers (executor.num_workers=1) or smaller shards",
                    ) from fault

    def _once(self, function: Callable[[Task], Result], tasks: Sequence[Task], left: Sequence[int], run: Run | None) -> Iterator[tuple[int, Result]]:
        if self._pool is None:
            # fresh interpreters: a fork would copy the threads' locks of whatever this process has loaded
            self._pool = ProcessPoolExecutor(self.num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
        waiting = list(reversed(left))
        running: dict[Future[tuple[int, Result]], int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < 2 * self.num_workers:
                    number = waiting.pop()
                    running[self._pool.submit(_done_by, function, tasks[number])] = number
                _stop_where_asked(run)
                done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    pid, result = future.result()
                    self.workers[str(pid)] = self.workers.get(str(pid), 0) + 1
                    yield running.pop(future), result
        finally:
            for future in running:
                future.cancel()


class Here:
    """Runs tasks in this process, one after the other: for steps that hold a model or a connection."""

    def __init__(self) -> None:
        self.workers: dict[str, int] = {}

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task], *, run: Run | None = None, title: str = "") -> Iterator[tuple[int, Result]]:
        """Yield (number of the task, its result), in order."""
        for number, task in enumerate(tasks):
            _stop_where_asked(run)
            self.workers[str(os.getpid())] = self.workers.get(str(os.getpid()), 0) + 1
            yield number, function(task)

    def close(self) -> None:
        """Nothing is held."""


def _done_by(function: Callable[[Task], Result], task: Task) -> tuple[int, Result]:
    return os.getpid(), function(task)


def _begin() -> None:
    """Leave Ctrl-C to the main process: it lets workers end what they are writing."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop_where_asked(run: Run | None) -> None:
    if run is not None and run.stop_asked:
        raise run.interrupt("Stopped; the shards that are done are kept.", next_step=run.command(folder=str(run.folder), resume="auto"))
