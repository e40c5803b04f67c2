"""A limit of seconds on a block of code, without a task of its own; what `asyncio.timeout` is from Python 3.11 on.

Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Cutoff:
    """Cancels the task that it stands in after some seconds; the block then ends, and `passed` tells why.

    The block sees the cancellation once, at the await it stands at, and may still await what closes things. A cancellation
    from elsewhere goes through, also where both come together. It cannot be used twice.

    Args:
        seconds: None never cancels, and costs next to nothing.
    """

    __slots__ = ("_before", "_handle", "_task", "passed", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.passed = False
        self._handle: asyncio.TimerHandle | None = None
        self._task: Any = None
        self._before = 0

    def __enter__(self) -> Cutoff:
        if self.seconds is not None:
            self._task = asyncio.current_task()
            self._before = self._task.cancelling() if hasattr(self._task, "cancelling") else 0
            self._handle = asyncio.get_running_loop().call_later(max(0.0, self.seconds), self._pass)
        return self

    def _pass(self) -> None:
        self.passed = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> bool:
        if self._handle is not None:
            self._handle.cancel()
        if not self.passed:
            return False
        others = self._task.uncancel() > self._before if hasattr(self._task, "uncancel") else False  # Python 3.10 does not count them
        return kind is not None and issubclass(kind, asyncio.CancelledError) and not others
