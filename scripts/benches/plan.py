"""Plan against run: peak memory that `plan=true` predicts beside what the same run takes.

Both sides in one process tree, every run a fork of a process that has made its imports; the measured side is the real task, `largeforge task=sft ...`,
two optimizer steps of it, as growth over the imports' own memory. A few runs that are not in the table calibrate the machine first.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benches.table import Row, Table

MIB = 1 << 20
TARGET = 0.15
NUM_DRAWN = 20
STEPS = 2  # the optimizer's state is there from the second on


@dataclass(frozen=True)
class Case:
    """One config: a name for the table, and the words of its command line."""

    name: str
    argv: list[str]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench plan", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="six drawn configs instead of twenty, each run once")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn configs")
    parser.add_argument("--repeats", type=int, default=None, help="runs of each config; the median counts (default 3, with --quick 1)")
    parser.add_argument("--no-calibration", action="store_true", help="plan with the numbers that are there")
    arguments = parser.parse_args(argv)
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    num_drawn = 6 if arguments.quick else NUM_DRAWN
    with tempfile.TemporaryDirectory(prefix="largeforge-bench-") as name:
        folder = Path(name)
        side = Side(folder)
        told = "numbers that were there before" if arguments.no_calibration else calibrate(side, folder)
        cases = [*fixed_cases(folder), *method_cases(), *drawn_cases(random.Random(arguments.seed), num_drawn, folder)]
        table = Table(
            name="plan",
            title=f"Peak memory, growth over the imports; seed {arguments.seed}, medians of {repeats}",
            ours="predicted",
            peer="measured",
            rows=[],
            notes=[f"Every run takes {STEPS} optimizer steps of the real task on one thread.", f"Calibration: {told}."],
        )
        for case in cases:
            predicted, measured = side.ask("plan", case.argv), [side.ask("train", case.argv) for _ in range(repeats)]
            growth = statistics.median(run["growth_bytes"] for run in measured)
            table.rows.append(Row(case.name, predicted["peak_bytes"] / MIB, growth / MIB, "MiB", at_least=1 - TARGET, at_most=1 + TARGET))
            table.details[case.name] = {
                "argv": case.argv,
                "memory": predicted["memory"],
                "before_calibration": predicted["facts_bytes"],
                "measured_bytes": [run["growth_bytes"] for run in measured],
            }
            print(f"{case.name}: predicted {predicted['peak_bytes'] / MIB:,.0f} MiB, measured {growth / MIB:,.0f}", file=sys.stderr, flush=True)
        side.close()
    missed = [row.name for row in table.rows if not row.met]
    errors = sorted(abs(row.ratio - 1) for row in table.rows)
    table.notes.append(
        f"Within {TARGET:.0%}: {len(table.rows) - len(missed)} of {len(table.rows)}; median error {statistics.median(errors):.1%}, largest {errors[-1]:.1%}."
    )
    if missed:
        table.notes.append("Missed: " + "; ".join(missed) + ".")
    table.publish()
    return 0


class Side:
    """The process that plans and trains (plan_side.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.fetched: set[str] = set()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benches.plan_side"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "said").open("w"), text=True
        )
        self._answer()

    def ask(self, do: str, argv: list[str]) -> dict[str, Any]:
        """Have a job done.

        Raises:
            RuntimeError: it failed; the message holds what was said.
        """
        model = " ".join(word for word in argv if word.startswith("model"))
        if do == "train" and model not in self.fetched:
            self.fetched.add(model)
            self.ask("fetch", argv)
        self.count += 1
        assert self.process.stdin is not None
        job = {"do": do, "argv": [*argv, f"folder={self.folder / f'run{self.count}'}"]}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(f"{do} {' '.join(argv)}\n{answer['error']}\n{(self.folder / 'said').read_text(encoding='utf-8')[-2000:]}")
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the side ended:\n{(self.folder / 'said').read_text(encoding='utf-8')[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def calibrate(side: Side, folder: Path) -> str:
    """Fit this machine's two numbers to runs of other sizes than the table's, and keep them."""
    from largeforge.plan.calibration import Calibration, keep_calibration

    rng = random.Random("calibration")
    cases = [drawn(rng, number, folder, prefix="calibration") for number in range(8)]
    path = rows_file(folder, rng, mean_words=120)
    large = {"hidden_size": 640, "intermediate_size": 1920, "num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 4}
    words = [*(f"model.shape.{key}={value}" for key, value in large.items()), "data.max_length=512", "trainer.batch_size=8", "trainer.micro_batch_size=4"]
    words += ["model=nano", "data=chat", f"data.path={path}"]
    for adapter, packing in (("lora", "true"), ("lora", "false"), ("none", "true"), ("none", "false")):
        cases.append(Case("large", [*COMMON, *words, f"adapter={adapter}", f"data.packing={packing}"]))
    points = []
    for case in cases:
        bytes_of = side.ask("plan", case.argv)["facts_bytes"]
        growth = side.ask("train", case.argv)["growth_bytes"]
        points.append(Point(bytes_of["kernels"], bytes_of["kept"], bytes_of["passing"], growth))
    runtime, kernel_bytes, factor = fit(points)
    told = f"calibrated on this machine by {len(points)} runs of scripts/bench plan: {runtime / MIB:.0f} MiB for libraries, "
    told += f"{kernel_bytes / 1000:.0f} kB for a kernel, x {factor:.3f} on what comes and goes in a step"
    keep_calibration(Calibration(int(runtime), int(kernel_bytes), factor, told))
    return told


@dataclass(frozen=True)
class Point:
    """One run of the calibration: what its plan is made of, and what it took."""

    kernels: float
    kept: float
    passing: float
    growth: float


def fit(points: Sequence[Point]) -> tuple[float, float, float]:
    """Return (runtime, per kernel, factor) with the least squared relative error of the growth."""
    import numpy as np

    growth = np.array([point.growth for point in points])
    columns = np.array([[1.0, float(point.kernels), point.passing] for point in points]) / growth[:, None]
    wanted = (growth - np.array([point.kept for point in points])) / growth
    runtime, kernel, factor = (float(value) for value in np.linalg.lstsq(columns, wanted, rcond=None)[0])
    return max(0.0, runtime), max(0.0, kernel), factor


# ---- configs ----

COMMON = [
    "task=sft",
    "tracker=none",
    "benchmark=none",
    "trainer=cpu",
    f"trainer.max_steps={STEPS}",
    "trainer.threads=1",
    "data.validation=0.0",
]


def fixed_cases(folder: Path) -> list[Case]:
    """nano and smollm2, full and LoRA, packed or not."""
    cases = []
    for model, width, batch in (("nano", 256, 16), ("smollm2", 256, 8)):
        path = rows_file(folder, random.Random(model), mean_words=40 if model == "nano" else 60)
        for adapter in ("lora", "none"):
            for packing in ("true", "false"):
                name = f"{model} {'LoRA' if adapter == 'lora' else 'full'} {'packed' if packing == 'true' else 'padded'} {width} x {batch}"
                words = [f"model={model}", f"adapter={adapter}", "data=chat", f"data.path={path}", f"data.max_length={width}", f"data.packing={packing}"]
                cases.append(Case(name, [*COMMON, *words, f"trainer.batch_size={batch}", f"trainer.micro_batch_size={batch // 2}"]))
    return cases


def method_cases() -> list[Case]:
    """Methods that ask a second model, or the same one twice; rows of the demo."""
    common = [word for word in COMMON if word != "task=sft"]
    common += ["data.num_rows=200", "data.num_heldout=4", "data.packing=false", "trainer.batch_size=8", "trainer.micro_batch_size=4"]
    asked = {
        "dpo LoRA, adapter switched off": ["task=dpo", "model=smollm2"],
        "dpo full, a second model": ["task=dpo", "model=nano", "adapter=none"],
        "dpo LoRA, a second model": ["task=dpo", "model=smollm2", "reference=smollm2"],
        "orpo LoRA": ["task=orpo", "model=smollm2"],
        "kto LoRA": ["task=kto", "model=smollm2"],
        "distill full": ["task=distill", "model=nano", "teacher=nano"],
        "distill hidden states": ["task=distill", "model=nano", "teacher=nano", "method.hidden.weight=1"],
        "distill LoRA": ["task=distill", "model=smollm2", "adapter=lora", "teacher=smollm2"],
    }
    return [Case(name, [*words, *common]) for name, words in asked.items()]


def drawn_cases(rng: random.Random, count: int, folder: Path) -> list[Case]:
    return [drawn(rng, number, folder, prefix="drawn") for number in range(count)]


def drawn(rng: random.Random, number: int, folder: Path, *, prefix: str) -> Case:
    """Draw length, batch, rank, packing and shape."""
    heads, head_dim, layers = rng.choice([2, 4, 8]), rng.choice([32, 64]), rng.randint(2, 16)
    hidden = 64 * rng.randint(3, 10)
    inner = 128 * round(hidden * rng.uniform(2.0, 4.0) / 128)
    length, batch, micro = rng.choice([128, 256, 384, 512, 768]), rng.choice([4, 8, 16]), rng.choice([2, 4, 8])
    rank, packing = rng.choice([0, 4, 8, 16, 32, 64]), rng.choice(["true", "false"])
    path = rows_file(folder, rng, mean_words=rng.choice([length // 16, length // 6, length // 3]))
    shape = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([1, 2, heads]),
        "head_dim": head_dim,
    }
    words = [f"model.shape.{key}={value}" for key, value in shape.items()]
    words += ["adapter=none"] if rank == 0 else ["adapter=lora", f"adapter.r={rank}"]
    words += ["model=nano", "data=chat", f"data.path={path}", f"data.max_length={length}", f"data.packing={packing}"]
    words += [f"trainer.batch_size={batch}", f"trainer.micro_batch_size={min(micro, batch)}"]
    learns = f"r={rank}" if rank else "full"
    form = "packed" if packing == "true" else "padded"
    return Case(f"{prefix} {number + 1}: {layers} layers of {hidden}/{inner}, {learns}, {form} {length}, {batch} by {min(micro, batch)}", [*COMMON, *words])


def rows_file(folder: Path, rng: random.Random, *, mean_words: int) -> Path:
    """Write 200 rows of chat of about so many words."""
    path = folder / f"rows{len(list(folder.glob('rows*')))}.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(200):
            words = [rng.choice(WORDS) for _ in range(max(4, int(rng.gauss(mean_words, mean_words / 3))))]
            cut = max(1, int(len(words) * rng.uniform(0.2, 0.7)))
            stream.write(json.dumps({"prompt": " ".join(words[:cut]), "completion": " ".join(words[cut:])}) + "\n")
    return path


WORDS = "please train the small model on my chats with a rank of eight and then tell me what it has learnt about rows and tokens".split()
