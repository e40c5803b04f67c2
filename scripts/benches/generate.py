"""Rows that a real teacher, SmolLM2-135M on this machine, makes: how many are kept, what is rejected and why, tokens and rows per second.

Runs the shipped recipe generate_instruct as a user would, in a process of its own; the target is that at least as many rows are kept as wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benches.processes import cost
from scripts.benches.table import Row, Table

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 6


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench generate", description=__doc__)
    parser.add_argument("--rows", type=int, default=200, help="rows that must be kept")
    parser.add_argument("--threads", type=int, default=2, help="threads of the teacher")
    parser.add_argument("--quick", action="store_true", help="24 rows")
    parser.add_argument("words", nargs="*", help="further words of the command line: generator.domain=support")
    options = parser.parse_args(argv)
    wanted = 24 if options.quick else options.rows
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            words = ["recipe=generate_instruct", f"generator.num_rows={wanted}", f"folder={run}", *options.words]
            spent = cost([sys.executable, "-m", "largeforge", *words], environment=environment)
        except RuntimeError as fault:
            print(fault, file=sys.stderr)
            return 1
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (run / "artifact" / "rows" / "train-00000.jsonl").read_text(encoding="utf-8").splitlines()]
    return told(result, rows, wanted=wanted, wall_s=spent.wall_s)


def told(result: dict[str, Any], rows: list[dict[str, Any]], *, wanted: int, wall_s: float) -> int:
    """Publish what a run left; 1 where fewer rows were kept than wanted."""
    metrics = result["metrics"]
    table = Table("generate", "Rows of a real teacher (SmolLM2-135M, recipe generate_instruct)", ours="kept", peer="wanted")
    table.rows.append(Row("rows", metrics["rows_kept"], wanted, "rows", at_least=1.0))
    reasons = {name.removeprefix("rejected_"): count for name, count in metrics.items() if name.startswith("rejected_")}
    rejected = ", ".join(f"{name} {count:.0f}" for name, count in sorted(reasons.items(), key=lambda item: -item[1])) or "none"
    table.notes += [
        f"Tries: {metrics['rows_in']:.0f}; kept {metrics['rows_kept']:.0f} ({metrics['rows_kept'] / metrics['rows_in']:.0%}).",
        f"Rejected: {rejected}.",
        f"Requests {metrics['requests']:.0f}, tokens of answers {metrics['completion_tokens']:.0f}, {metrics['tokens_per_s']:.1f} tokens/s.",
        f"{wall_s:.0f} s in all, start-up and loading included; {metrics['rows_kept'] / wall_s * 60:.0f} rows a minute.",
        "Some of them:",
        *(f"  {row['messages'][0]['content']}  ->  {row['messages'][-1]['content']}" for row in rows[:: max(1, len(rows) // SHOWN)]),
    ]
    table.details = {"metrics": metrics, "status": result["status"]}
    table.publish()
    return int(metrics["rows_kept"] < wanted)
