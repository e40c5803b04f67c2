"""What the C library's allocator makes of a timeline: the same requests, in the same order, asked of it in a process of their own.

Memory that is asked for and never touched costs nothing, so a replay of many gigabytes takes milliseconds. What it shows is
the room that holes between live tensors take. Elsewhere than on glibc there is no replay. Knows nothing about tensors.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence

ALIGNMENT = 64  # of torch's CPU allocator
WATCHED_BYTES = 64 << 10  # after requests this large the heap is looked at


class MallInfo2(ctypes.Structure):
    """struct mallinfo2 (glibc 2.33)."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def replayed_peak(requests: Sequence[tuple[int, int]], *, timeout_s: float = 60.0) -> int | None:
    """Return the largest size of the heap, mapped blocks included, over (key, size) requests; None where that cannot be had.

    Args:
        requests: size > 0 asks for a block named key, size < 0 gives it back.
        timeout_s: after which the replay is given up.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-S", "-E", __file__], input=json.dumps(requests), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        return int(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        return None


def replay(requests: Sequence[tuple[int, int]]) -> int:
    """Ask this process's allocator for the blocks, touching none; return the peak of its size in bytes.

    Raises:
        AttributeError: the C library has no mallinfo2.
        MemoryError: the system refuses so much address space.
    """
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = MallInfo2
    library.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]

    def size() -> int:
        info = library.mallinfo2()
        return int(info.arena + info.hblkhd)

    start = peak = size()
    where: dict[int, int] = {}
    block = ctypes.c_void_p()
    for key, size_bytes in requests:
        if size_bytes < 0:
            library.free(where.pop(key))
            continue
        if library.posix_memalign(ctypes.byref(block), ALIGNMENT, size_bytes):
            raise MemoryError(f"{size_bytes} bytes were refused")
        assert block.value is not None
        where[key] = block.value
        if size_bytes >= WATCHED_BYTES:
            peak = max(peak, size())
    return peak - start


if __name__ == "__main__":
    print(replay(json.load(sys.stdin)))
