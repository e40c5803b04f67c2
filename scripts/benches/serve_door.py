"""What our door costs: milliseconds that it adds to a request, and requests a second beside other doors, all before the same echo engine server.

An echo answers in less than a millisecond, so that what is measured is the door. Answers are whole, not streamed; connections are kept alive.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scripts.benches.serve_load import Measured, load, quantile
from scripts.benches.serve_servers import Server, door, echo, litellm, vllm_router
from scripts.benches.table import Row, Table

CLIENTS = 64
SAID = "the quick brown fox jumps over the lazy dog"
PEERS = {"litellm": litellm, "vllm-router": vllm_router}


def measure(folder: Path, *, pairs: int, quick: bool) -> int:
    """Measure all doors in turn; 1 where a target is missed."""
    table = Table("serve_door", f"the door before an echo, medians of {pairs} runs taken in turn, idle doors stopped", ours="LargeForge", peer="peer or target")
    with ExitStack() as stack:
        engine = stack.enter_context(echo(folder / "echo"))
        doors = {"ours": stack.enter_context(door(folder / "door", engine))}
        doors["ours"].pause()
        for name, start in PEERS.items():
            try:
                doors[name] = stack.enter_context(start(folder / name, engine))
                doors[name].pause()
            except (RuntimeError, OSError) as fault:
                table.notes.append(f"{name} is left out: {str(fault)[:300]}")
        sides: dict[str, Server] = {"direct": engine, **doors}
        alone: dict[str, list[Measured]] = {name: [] for name in sides}
        crowd: dict[str, list[Measured]] = {name: [] for name in sides}
        for server in sides.values():  # warm-up
            asked(engine, server, clients=CLIENTS, seconds=1.0)
        names = list(sides)
        for pair in range(pairs):
            for block in range(2):  # short blocks: what else the machine does falls on all sides alike
                for name in names[pair % len(names) :] + names[: pair % len(names)]:
                    alone[name].append(asked(engine, sides[name], clients=1, requests=300 if quick else 1000))
                    if block == 0:
                        crowd[name].append(asked(engine, sides[name], clients=CLIENTS, seconds=2.0 if quick else 5.0))
            told = ", ".join(f"{name} {alone[name][-1].whole_ms(0.5):.2f} ms {crowd[name][-1].requests_per_s:.0f}/s" for name in names)
            print(f"door #{pair + 1}: {told}", file=sys.stderr)
    rows(table, alone, crowd)
    table.publish()
    return int(any(row.met is False for row in table.rows))


def asked(engine: Server, server: Server, *, clients: int, **how: Any) -> Measured:
    """Measure one door while the others are stopped; the very same body for all."""
    body = {"model": engine.model, "messages": [{"role": "user", "content": SAID}], "max_tokens": 16, "temperature": 0, "stream": False}
    server.resume()  # the engine is never stopped
    try:
        return load(server.url, [body], clients=clients, **how)
    finally:
        if server is not engine:
            server.pause()


def rows(table: Table, alone: dict[str, list[Measured]], crowd: dict[str, list[Measured]]) -> None:
    """Add what was found to the table."""

    def latencies(name: str) -> list[float]:
        return [1000 * (reply.end_s - reply.start_s) for one in alone[name] for reply in one.good]

    def added(name: str, share: float) -> float:
        return quantile(latencies(name), share) - quantile(latencies("direct"), share)

    def rate(name: str) -> float:
        return float(statistics.median(one.requests_per_s for one in crowd[name]))

    table.rows += [
        Row("added latency p50, 1 client", added("ours", 0.5), 0.8, "ms", at_most=1.0),
        Row("added latency p99, 1 client", added("ours", 0.99), 5.0, "ms", at_most=1.0),
    ]
    peers = [name for name in crowd if name not in ("direct", "ours") and rate(name)]  # one that answers nothing is told below
    for name in peers:
        table.rows += [Row(f"  p{100 * share:.0f} beside {name}", added("ours", share), max(added(name, share), 1e-3), "ms") for share in (0.5, 0.99)]
    goals = {"litellm": 5.0, "vllm-router": 0.5}
    table.rows += [Row(f"requests/s, {CLIENTS} clients, beside {name}", rate("ours"), rate(name), "requests/s", at_least=goals[name]) for name in peers]
    table.rows.append(Row(f"requests/s, {CLIENTS} clients, beside no door", rate("ours"), rate("direct"), "requests/s"))
    failed = {name: sum(one.num_failed for one in [*alone[name], *crowd[name]]) for name in crowd}
    asked_in_all = sum(len(one.replies) for one in [*alone["ours"], *crowd["ours"]])
    table.rows.append(Row("requests of ours that were answered", 1 - failed["ours"] / max(1, asked_in_all), 1.0, "share", at_least=1.0))
    table.notes += [
        f"Direct p50 {quantile(latencies('direct'), 0.5):.2f} ms, p99 {quantile(latencies('direct'), 0.99):.2f} ms; p99 are quantiles of all requests, "
        "with a door less without one.",
        f"Answers that were not 200 or not whole: {', '.join(f'{name} {number}' for name, number in failed.items())}.",
        "Engine, door and load share this machine's cores: more cores would tell the doors further apart or closer together.",
    ]
    table.details = {"alone": {name: [one.numbers() for one in runs] for name, runs in alone.items()}}
    table.details["crowd"] = {name: [one.numbers() for one in runs] for name, runs in crowd.items()}
