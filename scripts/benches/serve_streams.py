"""A thousand streams at once through the door: all complete, how long until each says something, and what memory the door keeps.

The echo engine server answers at once; it is asked directly too, so that what the door adds can be told.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from scripts.benches.serve_load import Measured, load
from scripts.benches.serve_servers import door, echo
from scripts.benches.table import Row, Table

STREAMS = 1000
TOKENS = 20
LATER_S = 1.5  # that p95 of the first token may be later than without a door
GROWTH = 1.15


def measure(folder: Path, *, pairs: int) -> int:
    """Ask in turn without a door, through one that lets all in at once, and through one as it comes, which lets 256 in; 1 where a target is missed."""
    title = f"{STREAMS:,} streams of {TOKENS} tokens at once, medians of {pairs} runs taken in turn"
    table = Table("serve_streams", title, ours="LargeForge", peer="direct or target")
    with ExitStack() as stack:
        engine = stack.enter_context(echo(folder / "echo"))
        wide = stack.enter_context(door(folder / "wide", engine, f"guards.concurrency.max_active={STREAMS}"))
        queued = stack.enter_context(door(folder / "queued", engine, name="LargeForge's door as it comes"))
        sides = {"direct": engine, "through": wide, "queued": queued}
        found: dict[str, list[Measured]] = {name: [] for name in sides}
        memory: list[float] = []
        for run in range(-2, pairs):  # two to warm up: the first time so many connections are open takes memory that is kept
            for name, server in sides.items():
                told = load(server.url, [engine.ask(" ".join(["word"] * TOKENS), max_tokens=TOKENS)], clients=STREAMS, requests=STREAMS, timeout_s=120)
                if run >= 0:
                    found[name].append(told)
                print(f"{name} #{run + 1}: first p95 {told.first_ms(0.95):.0f} ms, {told.wall_s:.2f} s, failed {told.num_failed}", file=sys.stderr)
            memory.append(wide.rss_mib())

    def first_s(name: str) -> float:
        return float(statistics.median(one.first_ms(0.95) for one in found[name])) / 1000

    def complete(name: str) -> float:
        return statistics.mean(sum(reply.answer_tokens == TOKENS for reply in one.good) for one in found[name])

    table.rows += [
        Row("streams that were complete", complete("through"), STREAMS, "streams", at_least=1.0),
        Row("  directly", complete("direct"), STREAMS, "streams"),
        Row("  256 at once, the rest in the door's queue", complete("queued"), STREAMS, "streams", at_least=1.0),
        Row("first token p95, beside direct", first_s("through"), first_s("direct"), "s"),
        Row("  later than direct, beside what is allowed", max(0.0, first_s("through") - first_s("direct")), LATER_S, "s", at_most=1.0),
        Row("  the same, 256 at once", max(0.0, first_s("queued") - first_s("direct")), LATER_S, "s"),
        Row("memory of the door, last run beside the first", memory[-1], memory[1], "MiB", at_most=GROWTH),
    ]
    table.notes.append(f"Memory of the door after each run, two of warm-up first: {', '.join(f'{one:.0f}' for one in memory)} MiB.")
    table.details = {name: [one.numbers() for one in runs] for name, runs in found.items()}
    table.publish()
    return int(any(row.met is False for row in table.rows))
