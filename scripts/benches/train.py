"""Methods against TRL's trainers: DPO, ORPO and distillation, rows per second and memory; two processes beside one; a 7B model on a GPU.

Both sides get the same token ids and masks, weights, LoRA's size, dtype, optimizer, learning rate and reference mode, nothing packed, and take
one optimizer step over all rows again and again, so that losses can be compared. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.benches.table import Row, Table

SIDE = Path(__file__).with_name("train_side.py")


@dataclass(frozen=True)
class Case:
    """One comparison: a method, a model, how it learns."""

    method: str
    model: str
    adapter: str

    @property
    def name(self) -> str:
        return f"{self.method}, {self.model}, {'LoRA r=16' if self.adapter == 'lora' else 'full'}"


CASES = tuple(Case(method, model, adapter) for model, adapter in (("nano", "none"), ("smollm2", "lora")) for method in ("dpo", "orpo", "distill"))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench train", description=__doc__)
    parser.add_argument("--data", help="rows of question and answer, such as GSM8K's train.jsonl; a pair's rejected answer is the next row's")
    parser.add_argument("--rows", type=int, default=16, help="rows (or pairs) of the one optimizer step")
    parser.add_argument("--steps", type=int, default=4, help="steps; the first warms up and is not timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro", type=int, default=2, help="rows (or pairs) of one forward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--quick", action="store_true", help="one repeat, two timed steps, 8 rows")
    parser.add_argument("--gpu", action="store_true", help="instead: a model of Mistral 7B's shape on this machine's GPU")
    options = parser.parse_args(argv)
    if options.gpu:
        from scripts.benches.train_gpu import measure as on_gpu

        return on_gpu(quick=options.quick)
    if not options.data:
        parser.error("--data is needed: rows of question and answer")
    if options.quick:
        options.repeats, options.steps, options.rows = 1, 3, 8
    table = Table("train", "Methods: LargeForge beside TRL's trainers (medians; the first step is not timed)", ours="LargeForge", peer="TRL")
    with tempfile.TemporaryDirectory() as folder:
        files = {"pairs": write(Path(folder) / "pairs.jsonl", pairs(options)), "chat": write(Path(folder) / "chat.jsonl", chat(options))}
        for case in CASES:
            if options.only in case.name:
                measure(table, case, options, files["chat" if case.method == "distill" else "pairs"])
    table.notes += [
        "Both sides: the same rows in the same step, nothing packed, AdamW (fused), constant learning rate, gradient checkpointing off; the reference of"
        " DPO is the adapter switched off under LoRA and a copy otherwise; ORPO trains the prompt too, as TRL does; distillation is forward KL alone.",
        "Memory is the peak of resident memory over what the imports hold, until the last step ends.",
        "Where the speed comes from: only supervised positions reach the output head, in chunks whose gradient is taken at once; rows of like length"
        " share a micro-batch, so that little is padded; no casts of LoRA's inputs.",
    ]
    table.publish()
    return 0


def records(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Question and answer of each row that is short enough."""
    with Path(options.data).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            question, answer = (next(str(row[name]) for name in names if name in row) for names in (("question", "prompt"), ("answer", "completion")))
            if len(question) + 2 * len(answer) < 3 * options.length:  # fits whatever the tokenizer
                yield question, answer


def pairs(options: argparse.Namespace) -> list[dict[str, str]]:
    found = list(islice(records(options), options.rows + 1))
    return [{"prompt": q, "chosen": a, "rejected": other} for (q, a), (_, other) in zip(found, found[1:], strict=False)]


def chat(options: argparse.Namespace) -> list[dict[str, str]]:
    return [{"prompt": question, "completion": answer} for question, answer in islice(records(options), options.rows)]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def measure(table: Table, case: Case, options: argparse.Namespace, data: Path) -> None:
    """Run both sides in turn and add the case's rows."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for repeat in range(options.repeats):
        for side, results in sides.items():
            results.append(run_side(side, case, options, data))
            told = results[-1]
            print(f"{case.name} {side} #{repeat + 1}: {told['rows_per_s']:.2f} rows/s, {told['growth_mib']:.0f} MiB", file=sys.stderr)

    def median(side: str, name: str) -> float:
        return float(statistics.median(result[name] for result in sides[side]))

    name, unit = case.name, "rows" if case.method == "distill" else "pairs"
    table.rows += [
        Row(f"{name}: {unit}/s", median("ours", "rows_per_s"), median("trl", "rows_per_s"), f"{unit}/s", at_least=1.3),
        Row(f"{name}: {unit}/CPU s", median("ours", "rows_per_cpu_s"), median("trl", "rows_per_cpu_s"), f"{unit}/s"),
        Row(f"{name}: memory growth", median("ours", "growth_mib"), median("trl", "growth_mib"), "MiB", at_most=0.9),
        Row(f"{name}: tokens a step", sides["ours"][0]["tokens"], sides["trl"][0]["tokens"], "tokens", at_least=1.0, at_most=1.0),
        Row(f"{name}: first loss", sides["ours"][0]["losses"][0], sides["trl"][0]["losses"][0], "nats", at_least=0.999, at_most=1.001),
    ]
    table.details[case.name] = sides


def run_side(side: str, case: Case, options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """One process of one side."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        facts = {"side": side, "method": case.method, "model": case.model, "adapter": case.adapter, "out": str(out), "folder": folder, "data": str(data)}
        facts |= {name: getattr(options, name) for name in ("rows", "steps", "length", "micro", "threads")}
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([sys.executable, str(SIDE), json.dumps(facts)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{case.name} {side} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return dict(json.loads(out.read_text(encoding="utf-8")))
