"""Functions that workers run: they must be importable there."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from largeforge.errors import InputError


def double(number: int) -> int:
    return 2 * number


def slow_double(number: int) -> int:
    time.sleep(0.3)
    return 2 * number


def who(number: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def fails_at_three(number: int) -> int:
    if number == 3:
        raise InputError("three cannot be done", next_step="leave three out")
    return number


def loads_torch(number: int) -> bool:
    return "torch" in sys.modules


@dataclass(frozen=True)
class KilledOnce:
    """Doubles; the first time that it meets `number`, it takes its own process down, as an out-of-memory killer would."""

    number: int
    marker: Path

    def __call__(self, number: int) -> int:
        if number == self.number and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number


def always_dies(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number
