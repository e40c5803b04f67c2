"""Whether methods teach what they say: held-out measures before and after, with a term and without it, on data given by path, on nano.

Every number is the task's own: each run is the command that a user would type, in this process, and what is compared stands in its result.json.
A comparison that is lost is told as lost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.benches.table import Row, Table

SUMS = """# Sums of small numbers
name: sums
description: Sums of small numbers
slots:
  a: {type: int, min: 1, max: 99}
  b: {type: int, min: 1, max: 6}
templates:
  - id: sum
    messages:
      - {role: user, content: "What is {{ a }} + {{ b }}?"}
      - {role: assistant, content: "{{ a + b }}"}
"""
STUDENT = ["model=nano", "model.shape.num_hidden_layers=2", "model.shape.hidden_size=128", "model.shape.intermediate_size=256"]
PLAIN = ["method.logits_weight=0", "method.nll_weight=1"]
MODES: dict[str, list[str]] = {
    "forward KL": [],
    "reverse KL": ["method.divergence=reverse_kl"],
    "JSD": ["method.divergence=jsd"],
    "hidden states": [*PLAIN, "method.hidden.weight=1"],
    "growing layers, then hidden states": [*PLAIN, "method.hidden.weight=1", "method.progressive.growth=layers", "method.progressive.share=0.2"],
    "assistant, then teacher": ["assistant=ASSISTANT", "method.progressive.share=0.4"],
    "teacher's top 64, kept": ["method.teacher_logits=cached"],
    "own answers in a third of the steps": ["method.on_policy.share=0.33", "method.on_policy.max_tokens=48"],
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench learning", description=__doc__)
    parser.add_argument("--gsm8k", required=True, help="rows of question and answer, such as GSM8K's train.jsonl")
    parser.add_argument("--text", required=True, help="plain text, such as tinyshakespeare.txt")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="one of: pretrain, preferences, distill, qlora")
    parser.add_argument("--quick", action="store_true", help="one seed, a third of the steps")
    parser.add_argument("--full", action="store_true", help="dpo and orpo on smollm2 too")
    options = parser.parse_args(argv)
    seeds = range(1 if options.quick else options.seeds)
    table = Table("learning", "What methods teach: held-out measures, means over seeds (every seed in the JSON)", ours="after / with", peer="before / without")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place), share=1 / 3 if options.quick else 1.0)
        for name, stage in (("pretrain", pretraining), ("preferences", preferences), ("distill", distillation)):
            if options.only in ("", name) or (name == "preferences" and options.only == "qlora"):
                stage(table, lab, options, seeds)
                print(f"{name}: done at {time.monotonic() - begin:.0f} s", file=sys.stderr)
    table.notes += [
        f"nano (3.4M parameters, fresh), {len(seeds)} seeds, {time.monotonic() - begin:.0f} s in all; rows set aside by data.validation are never trained on.",
        "The difference is judged: bits and nats are to fall, accuracy and margin to rise; a row that says NO is a loss, and stays in the table.",
        "Distillation: the same student, rows, steps and learning rate; without the term it learns the rows' answers alone. The score is its plain negative"
        " log-likelihood of held-out answers.",
    ]
    table.publish()
    return 0


class Lab:
    """Runs commands in this process, each in a folder of its own.

    Args:
        folder: for all of them.
        share: of every run's steps.
    """

    def __init__(self, folder: Path, *, share: float) -> None:
        self.folder = folder
        self.share = share
        self.count = 0

    def run(self, *words: str, steps: int = 0) -> tuple[dict[str, float], Path]:
        """Return a run's metrics and its folder. Raises RuntimeError where it ends with an error."""
        from largeforge.__main__ import main as largeforge

        self.count += 1
        folder = self.folder / f"run{self.count}"
        more = [f"trainer.max_steps={max(2, int(steps * self.share))}", "tracker=none", "benchmark=none", "trainer=cpu"] if steps else []
        code = largeforge([*words, *more, f"folder={folder}"])
        if code:
            raise RuntimeError(f"{' '.join(words)} ended with {code}")
        return dict(json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]), folder


def add(table: Table, name: str, unit: str, pairs: list[tuple[float, float]], *, rises: bool) -> None:
    """A row from (after, before) of every seed; judged by the difference of the means, since a margin may be 0 or negative."""
    after, before = (statistics.mean(side) for side in zip(*pairs, strict=True))
    table.rows.append(Row(name, after, before, unit, higher=rises))
    table.details[name] = [{"after": one, "before": two} for one, two in pairs]


def pretraining(table: Table, lab: Lab, options: argparse.Namespace, seeds: range) -> None:
    """Held-out bits per byte, before and after; a curriculum beside none."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        for curriculum in ("none", "length", "loss"):
            words = ["task=pretrain", "model=nano", f"data.path={options.text}", "data.max_length=128", "data.validation=0.1", f"data.curriculum={curriculum}"]
            words += [f"seed={seed}", "method.learning_rate=2e-3", "trainer.batch_size=8", "trainer.validate_first=true"]
            metrics, _ = lab.run(*words, steps=120)
            found.setdefault(curriculum, []).append((metrics["validation_bits_per_byte"], metrics["validation_bits_per_byte_before"]))
    add(table, "pretrain: bits per byte", "bits", found["none"], rises=False)
    for curriculum in ("length", "loss"):
        add(
            table,
            f"pretrain: curriculum by {curriculum} beside none",
            "bits",
            [(a, b) for (a, _), (b, _) in zip(found[curriculum], found["none"], strict=True)],
            rises=False,
        )


def preferences(table: Table, lab: Lab, options: argparse.Namespace, seeds: range) -> None:
    """Pairs that a program judged: a model that has learnt sums a little answers, even results are chosen, odd ones rejected.

    Which result is right is not what a model of this size learns from some hundred pairs; which one a rule prefers is.
    """
    sums = lab.folder / "sums.yaml"
    sums.write_text(SUMS, encoding="utf-8")
    _, made = lab.run("task=generate", "generator=template", f"generator.templates={sums}", "generator.num_rows=500")
    taught, teacher = lab.run(
        "task=sft", "model=nano", "adapter=none", f"data={made}/artifact", "data.max_length=64", "method.learning_rate=2e-3",
        "trainer.batch_size=64", "trainer.micro_batch_size=64", steps=120 if lab.share == 1 else 360,
    )  # fmt: skip
    words = ["task=generate", "generator=preference", f"generator.prompts={sums}", f"teacher={teacher}/artifact"]
    words += ["generator.score_by=regex", "generator.pattern=[02468]$"]
    words += ["generator.samples=4", "engine.max_tokens=6", "generator.num_rows=300", "generator.attempts=3", "generator.shots=0"]
    counted, judged = lab.run(*words)
    _, pairs = lab.run("task=prepare", f"data={judged}/artifact", "steps=[split]", "step.split.validation=0.2", "step.split.test=0")
    table.details["pairs"] = {"sft_loss": taught["loss"], **counted}
    for method, rate in (("dpo", 2e-4), ("orpo", 2e-4), ("simpo", 1e-4), ("kto", 5e-4)):
        if options.only == "qlora":
            break
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in seeds:
            split = [f"data={pairs}/artifact", "data.max_length=64", f"seed={seed}"]
            more = ["adapter=none", f"method.learning_rate={rate}", "trainer.batch_size=16", "trainer.micro_batch_size=16", "trainer.validate_first=true"]
            metrics, _ = lab.run(f"task={method}", f"model={teacher}/artifact", *split, *more, steps=60)
            for name in ("preference_accuracy", "preference_margin"):
                if f"validation_{name}" in metrics:
                    found.setdefault(name, []).append((metrics[f"validation_{name}"], metrics[f"validation_{name}_before"]))
        for name, pairs_of in found.items():
            add(table, f"{method}: held-out {name.replace('_', ' ')}", "share" if name.endswith("accuracy") else "nats", pairs_of, rises=True)
    losses = []
    for seed in seeds:
        both = []
        for quant in ("nf4", "none"):
            words = [
                "task=sft",
                f"model={teacher}/artifact",
                f"data={made}/artifact",
                "data.max_length=64",
                f"quant={quant}",
                f"seed={seed}",
                "trainer.batch_size=32",
            ]
            both.append(lab.run(*words, "trainer.micro_batch_size=32", "method.learning_rate=5e-4", steps=60)[0]["loss"])
        losses.append((both[0], both[1]))
    after, before = (statistics.mean(side) for side in zip(*losses, strict=True))
    table.rows.append(Row("sft: QLoRA's loss beside LoRA's", after, before, "nats", at_least=0.98, at_most=1.02))
    table.details["sft: QLoRA's loss beside LoRA's"] = losses
    if options.full:
        on_smollm2(table, lab, f"{pairs}/artifact")


def on_smollm2(table: Table, lab: Lab, pairs: str) -> None:
    """dpo and orpo of a real model, told as measured."""
    for method in ("dpo", "orpo"):
        words = [
            f"task={method}",
            "model=smollm2",
            "data=preference",
            f"data.path={pairs}",
            "data.validation=0.2",
            "data.max_length=96",
            "trainer.batch_size=16",
        ]
        metrics, _ = lab.run(*words, "trainer.micro_batch_size=8", "trainer.validate_first=true", steps=30)
        for name in ("preference_accuracy", "preference_margin"):
            add(table, f"{method}, smollm2: held-out {name}", "", [(metrics[f"validation_{name}"], metrics[f"validation_{name}_before"])], rises=True)


def distillation(table: Table, lab: Lab, options: argparse.Namespace, seeds: range) -> None:
    """A small student with each mode, beside the same student and budget without its term."""
    rows = lab.folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in islice(short_rows(options.gsm8k), 2400)), encoding="utf-8")
    few = lab.folder / "few.jsonl"
    few.write_text("".join(rows.read_text(encoding="utf-8").splitlines(keepends=True)[:400]), encoding="utf-8")
    held = lab.folder / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in islice(short_rows(options.gsm8k), 2400, 2560)), encoding="utf-8")
    shared = ["data=chat", "data.max_length=320", "adapter=none", "trainer.batch_size=8", "trainer.micro_batch_size=8", "data.packing=true"]
    teachers = {}
    for who, shape in (("teacher", []), ("assistant", ["model.shape.num_hidden_layers=3", "model.shape.hidden_size=192", "model.shape.intermediate_size=384"])):
        words = ["task=sft", "model=nano", *shape, f"data.path={rows}", "method.learning_rate=2e-3", *shared]
        teachers[who] = str(lab.run(*words, steps=300)[1] / "artifact")
    for mode, changes in {"nothing": PLAIN, **MODES}.items():
        for seed in seeds:
            words = ["task=distill", *STUDENT, f"teacher={teachers['teacher']}", f"data.path={few}", f"data.validation={held}", f"seed={seed}", *shared]
            words += ["method.learning_rate=2e-3", *[word.replace("ASSISTANT", teachers["assistant"]) for word in changes]]
            metrics, _ = lab.run(*words, steps=100)
            table.details.setdefault("student's held-out nll", {}).setdefault(mode, []).append(metrics["validation_nll"])
    nll: dict[str, list[float]] = table.details["student's held-out nll"]
    for mode in MODES:
        add(table, f"distill: {mode} beside none", "nats", list(zip(nll[mode], nll["nothing"], strict=True)), rises=False)


def short_rows(path: str) -> Iterator[dict[str, Any]]:
    """Question and answer of rows that fit."""
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if len(row["question"]) + len(row["answer"]) < 420:
                yield {"prompt": row["question"], "completion": row["answer"]}
