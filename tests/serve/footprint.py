"""What a running server takes: memory, threads and open files of each of its processes."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.serve.servers import Server

MIB = 2**20


@dataclass(frozen=True)
class Footprint:
    """Of all processes of a server, the door first; resident bytes, and counts."""

    rss: tuple[int, ...]
    threads: tuple[int, ...]
    files: tuple[int, ...]

    @classmethod
    def of(cls, server: Server) -> Footprint:
        family = sorted(server.family(), key=lambda one: one.pid)
        return cls(tuple(one.memory_info().rss for one in family), tuple(one.num_threads() for one in family), tuple(one.num_fds() for one in family))

    def grown(self, before: Footprint) -> list[str]:
        """Threads and files that are more than before, in words; none where nothing grew.

        Threads of pools may have come, each with a connection to LitServe's queues (asyncio makes up to cores + 4, when it needs them), and
        connections between door and engine, which are kept for a minute.
        """
        told = []
        for what, now, then, spare in (("threads", self.threads, before.threads, 8), ("files", self.files, before.files, 16)):
            told += [f"process {number}: {what} {a} -> {b}" for number, (a, b) in enumerate(zip(then, now, strict=True)) if b > a + spare]
        return told

    def memory(self, before: Footprint) -> list[float]:
        """MiB that each process has more than before."""
        return [(now - then) / MIB for now, then in zip(self.rss, before.rss, strict=True)]


def settled(server: Server, before: Footprint, seconds: float = 20) -> list[str]:
    """Wait until threads and files are back where they were; what is not, in words."""
    until = time.monotonic() + seconds
    while True:
        found = Footprint.of(server).grown(before)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)
