"""Tokenize and pack rows beside `datasets.map` and TRL's `pack_dataset`: the same tokenizer, the same rows, whole processes in turn.

    scripts/bench pack [ROWS.jsonl] [--quick]

Both sides read the file, put each row through the chat template, tokenize it with the mask of what is learnt, pack to 512 tokens, and go over every
packed sequence once. Neither finds anything in a cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.benches.processes import in_turn
from scripts.benches.table import Row, Table

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench pack", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", nargs="?", default=str(ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"), help="rows of question and answer")
    parser.add_argument("--quick", action="store_true", help="one repeat")
    arguments = parser.parse_args(argv)
    sides = {side: [sys.executable, "-m", "scripts.benches.pack_side", side, arguments.path] for side in ("imports", "ours", "trl_imports", "trl")}
    costs = in_turn(sides, repeats=1 if arguments.quick else 5, warmups=1)
    wall = {side: statistics.median(cost.wall_s for cost in found) for side, found in costs.items()}
    cpu = {side: statistics.median(cost.cpu_s for cost in found) for side, found in costs.items()}
    rows = [
        Row("wall seconds, imports left out", wall["ours"] - wall["imports"], wall["trl"] - wall["trl_imports"], "s", at_most=1.0),
        Row("wall seconds, whole process", wall["ours"], wall["trl"], "s", at_most=1.0),
        Row("CPU seconds, whole process", cpu["ours"], cpu["trl"], "s"),
    ]
    details = {side: [vars(cost) for cost in found] for side, found in costs.items()}
    sides_said = "data=chat beside datasets.map and TRL's pack_dataset, one process each"
    title = f"Tokenize and pack {Path(arguments.path).name} to 512 tokens (SmolLM2's tokenizer): {sides_said}"
    Table(
        "data_pack", title, "largeforge", "TRL", rows, ["Ours also lints the masks and writes the token cache; so does datasets.map write its own."], details
    ).publish()
    return 0
