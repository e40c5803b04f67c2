"""SFT against TRL's SFTTrainer on rows of a file: supervised tokens per second and memory, packed and not.

Both sides get the same token ids and masks, weights, LoRA matrices' seed and size, dtype, optimizer and learning rate, and take
one optimizer step over all rows again and again, so that losses can be compared step by step. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benches.table import Row, Table

SIDE = Path(__file__).with_name("sft_side.py")


@dataclass(frozen=True)
class Case:
    """One comparison: a model, how it learns, how rows lie in batches, and what is aimed at."""

    model: str
    adapter: str
    packing: bool
    speed_at_least: float
    memory_at_most: float

    @property
    def name(self) -> str:
        return f"{self.model}, {'LoRA r=16' if self.adapter == 'lora' else 'full'}, {'packed' if self.packing else 'not packed'}"


CASES = (
    Case("smollm2", "lora", packing=True, speed_at_least=1.6, memory_at_most=0.75),
    Case("smollm2", "lora", packing=False, speed_at_least=1.6, memory_at_most=0.75),
    Case("nano", "none", packing=True, speed_at_least=1.3, memory_at_most=0.9),
    Case("nano", "none", packing=False, speed_at_least=1.3, memory_at_most=0.9),
)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench sft", description=__doc__)
    parser.add_argument("--data", required=True, help="rows of prompt and completion, such as GSM8K's train.jsonl")
    parser.add_argument("--rows", type=int, default=32, help="rows of the one optimizer step")
    parser.add_argument("--steps", type=int, default=4, help="steps; the first warms up and is not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro", type=int, default=2, help="sequences of one forward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--quick", action="store_true", help="one repeat, two timed steps, 16 rows, packed cases only")
    options = parser.parse_args(argv)
    cases = [case for case in CASES if options.only in case.name]
    if options.quick:
        options.repeats, options.steps, options.rows = 1, 3, 16
        cases = [case for case in cases if case.packing]
    table = Table("sft", "SFT: LargeForge beside TRL's SFTTrainer (medians; the first step is not timed)", ours="LargeForge", peer="TRL")
    for case in cases:
        measure(table, case, options)
    table.notes += [
        "Both sides: the same rows in the same step, AdamW (fused), constant learning rate, no clipping difference, gradient checkpointing off.",
        "Memory is the peak of resident memory over what the imports hold.",
        "The timer runs from the end of the first step to the end of the last, loader included, on both sides.",
        "Where the speed comes from: logits of supervised tokens only, in chunks whose gradient is taken at once; packed examples that attend apart;"
        " no casts of LoRA's inputs.",
    ]
    table.publish()
    return 0


def measure(table: Table, case: Case, options: argparse.Namespace) -> None:
    """Run both sides in turn and add the case's rows."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for repeat in range(options.repeats):
        for side, results in sides.items():
            results.append(run_side(side, case, options))
            told = results[-1]
            print(f"{case.name} {side} #{repeat + 1}: {told['tokens_per_s']:.0f} tokens/s, {told['growth_mib']:.0f} MiB", file=sys.stderr)

    def median(side: str, name: str) -> float:
        return float(statistics.median(result[name] for result in sides[side]))

    ours, theirs = sides["ours"][0], sides["trl"][0]
    name = case.name
    table.rows += [
        Row(f"{name}: supervised tokens/s", median("ours", "tokens_per_s"), median("trl", "tokens_per_s"), "tokens/s", at_least=case.speed_at_least),
        Row(f"{name}: supervised tokens/CPU s", median("ours", "tokens_per_cpu_s"), median("trl", "tokens_per_cpu_s"), "tokens/s"),
        Row(f"{name}: memory growth", median("ours", "growth_mib"), median("trl", "growth_mib"), "MiB", at_most=case.memory_at_most),
        Row(f"{name}: supervised tokens a step", ours["supervised"], theirs["supervised"], "tokens", at_least=1.0, at_most=1.0),
        Row(f"{name}: first loss", ours["losses"][0], theirs["losses"][0], "nats", at_least=0.999, at_most=1.001),
        Row(f"{name}: last loss", ours["losses"][-1], theirs["losses"][-1], "nats"),
    ]
    table.details[case.name] = sides


def run_side(side: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One process of one side."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        facts = {"side": side, "model": case.model, "adapter": case.adapter, "packing": case.packing, "out": str(out), "folder": folder}
        facts |= {name: getattr(options, name) for name in ("data", "rows", "steps", "length", "micro", "threads")}
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([sys.executable, str(SIDE), json.dumps(facts)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{case.name} {side} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return dict(json.loads(out.read_text(encoding="utf-8")))
