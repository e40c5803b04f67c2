"""Words about processes of this machine: die with a parent, find a free port, spare what stays from the garbage collector. Standard library only."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket

PR_SET_PDEATHSIG = 1
GARBAGE_THRESHOLDS = (10_000, 20, 50)  # objects made and not freed before a look at the youngest; such looks before older ones


def die_with_parent(parent: int | None = None) -> None:
    """In a child: be killed when the parent dies, however it dies (Linux; elsewhere nothing is done).

    Args:
        parent: its pid, as it said itself before the child was there: one that died before this was said is noticed. None looks at nothing.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def spare_what_stays() -> None:
    """In a server that has started: keep what it holds now, which stays, out of the garbage collector's way, and have it look less often.

    It looked at every module and model of the process again and again while requests came: a third of a door's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
