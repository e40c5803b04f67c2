"""Which device a plan is for, and how much memory it has: the one found here, or one of a table.

Knows nothing about what runs on it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from largeforge.errors import ConfigError, Problem

GIB = 1 << 30
TABLE = Path(__file__).with_name("devices.yaml")


@dataclass(frozen=True)
class Device:
    """Where a plan would run.

    Args:
        name: as `plan=` names it.
        title: for people.
        kind: "cpu" or "cuda".
        memory_bytes: all of it.
        found: whether it is in this machine, rather than named.
    """

    name: str
    title: str
    kind: Literal["cpu", "cuda"]
    memory_bytes: int
    found: bool


@cache
def table() -> dict[str, dict[str, Any]]:
    """The devices that can be named, by name."""
    import yaml

    devices: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return devices


def device_for(plan: bool | str, *, kind: str) -> Device:
    """Return the device of `plan=<value>`.

    Args:
        plan: True is the device found here; otherwise a name of the table, which holds "cpu" too.
        kind: "cpu" or "cuda": what a run here would use.

    Raises:
        ConfigError: the table has no such name.
    """
    if plan is True:
        return found_gpu() if kind == "cuda" else found_cpu()
    name = str(plan).lower()
    if name == "cpu":
        return found_cpu()
    if name not in table():
        near = get_close_matches(name, table(), n=1, cutoff=0.5)
        allowed = "true, " + ", ".join(table())
        problem = Problem("plan", str(plan), f"one of: {allowed}" + (f"; nearest: {near[0]}" if near else ""), "")
        raise ConfigError([problem], next_step=f"plan={near[0] if near else 'true'}")
    entry = table()[name]
    return Device(name, entry["title"], "cuda", int(entry["memory_gib"] * GIB), found=False)


def found_cpu() -> Device:
    """This machine's memory, or what its container may use of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            memory = min(memory, int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit here, or "max"
            continue
    return Device("cpu", f"this machine's CPU ({os.cpu_count()} cores)", "cpu", memory, found=True)


def found_gpu() -> Device:
    """The first GPU that torch sees."""
    import torch

    facts = torch.cuda.get_device_properties(0)
    return Device("gpu", facts.name, "cuda", int(facts.total_memory), found=True)
