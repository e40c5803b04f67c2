"""Measure whole processes: CPU and wall seconds of a command, sides taken in turn.

Counts what the kernel counts for the child and the children it waited for. Peak memory is left out on purpose: what the
kernel reports for a child starts at what the parent held when it forked.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one run of a command took."""

    cpu_s: float
    wall_s: float


def cost(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end, its output thrown away.

    Raises:
        RuntimeError: it ended with an error; the message holds the end of what it said.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, wall_s)


def in_turn(sides: Mapping[str, Sequence[str]], *, repeats: int, warmups: int = 1) -> dict[str, list[Cost]]:
    """Run every side once, then again, ...: what else the machine does meanwhile falls on all sides alike."""
    for _ in range(warmups):
        for command in sides.values():
            cost(command)
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, command in sides.items():
            costs[name].append(cost(command))
    return costs


def median_cpu_s(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.cpu_s for cost in costs)
