"""A model of Mistral 7B's shape, with random weights, trained on this machine's GPU: memory, tokens per second, and the plan beside both.

Started by `scripts/bench train --gpu`. Random weights cost what real ones cost; they are written once to the user's cache (14.5 GB) and loaded as
any model's folder is, so that what is measured is the task as a user starts it. Each run is a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge.artifact import user_cache
from scripts.benches.table import Row, Table

GB = 1e9
LITGPT_QLORA_GB = 14.3  # LitGPT's published peak: Mistral 7B, QLoRA (nf4), length 512, micro-batch 2
AUTOMODEL_TOKENS_PER_S = 12_473.0  # NeMo Automodel's published figure: Llama-3 8B, LoRA, one H100


@dataclass(frozen=True)
class Case:
    """One run: how weights are held, how long rows are, how many are taken at once and in a step."""

    name: str
    quant: str
    length: int
    micro: int
    micros_per_step: int
    steps: int


CASES = (
    Case("QLoRA nf4, length 512, micro-batch 2", "nf4", 512, 2, 4, 6),
    Case("LoRA bf16, length 4096, micro-batch 2, 16 a step", "none", 4096, 2, 16, 4),
    Case("LoRA bf16, length 512, micro-batch 16", "none", 512, 16, 4, 6),
)


def measure(*, quick: bool) -> int:
    """Run the cases and publish the table; exit code 2 where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        print("scripts/bench train --gpu needs an NVIDIA GPU that torch can use; there is none here.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_properties(0)
    model = random_weights()
    table = Table("train_gpu", f"Mistral 7B's shape, random weights, on {card.name}", ours="LargeForge", peer="target or plan")
    for case in CASES[:1] if quick else CASES:
        metrics, planned = run(case, model)
        peak, seconds = metrics["peak_memory_bytes"], metrics["train_seconds"]
        tokens_per_s = metrics["tokens_per_s"]
        print(f"{case.name}: {peak / GB:.2f} GB, {tokens_per_s:.0f} tokens/s", file=sys.stderr)
        table.rows += [
            Row(f"{case.name}: peak beside the plan", peak / GB, planned / GB, "GB", at_least=1 / 1.1, at_most=1 / 0.9),
            Row(f"{case.name}: peak beside the card", peak / GB, card.total_memory / GB, "GB", at_most=0.95),
        ]
        if case.quant == "nf4":
            table.rows += [
                Row(f"{case.name}: peak beside LitGPT's published one", peak / GB, LITGPT_QLORA_GB, "GB", at_most=1.0),
                Row(f"{case.name}: peak beside the goal", peak / GB, 9.0, "GB", at_most=1.0),
            ]
        elif case.length == 4096:
            table.rows.append(Row(f"{case.name}: tokens/s beside Llama-3 8B's published", tokens_per_s, AUTOMODEL_TOKENS_PER_S, "tokens/s", at_least=1.0))
        else:
            table.rows.append(Row(f"{case.name}: rows of 512 tokens/s", tokens_per_s / 512, 100.0, "rows/s", at_least=1.0))
        table.details[case.name] = {"metrics": metrics, "planned_bytes": planned, "train_seconds": seconds}
    table.notes += [
        "Shapes: Mistral 7B has 32 layers, width 4096, feed-forward 14336, 32/8 heads, vocabulary 32,000 (7.24B parameters); the published figure is of"
        " Llama-3 8B: the same but a vocabulary of 128,256 (8.03B).",
        "Peak is what torch's allocator held; every token of a row is learnt; the first step is counted.",
    ]
    table.publish()
    return 0


def random_weights() -> Path:
    """A folder with Mistral 7B's shape in bf16, and nano's tokenizer; made once."""
    import torch
    from transformers import AutoModelForCausalLM

    from largeforge.build import build
    from largeforge.config.compose import compose
    from largeforge.model.shape import network_config

    folder = user_cache() / "bench" / "mistral7b_random"
    if (folder / "complete").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape: Any = compose(["task=sft", "model=mistral7b"]).config
    with torch.device("cuda"):
        network: Any = AutoModelForCausalLM.from_config(network_config(shape.model.shape), dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    network.save_pretrained(folder)
    nano: Any = compose(["task=sft", "model=nano"]).config
    tokenizer = build(nano.model).load(trainable=False).tokenizer
    tokenizer.save_pretrained(folder)
    (folder / "complete").write_text("", encoding="utf-8")
    return folder


def run(case: Case, model: Path) -> tuple[dict[str, float], int]:
    """Train in a process of its own; return its metrics, and the bytes that the plan says."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = folder / "rows.jsonl"
        text = "one two three four five six seven eight nine ten " * case.length
        rows.write_text("".join(json.dumps({"text": f"{number} {text}"[: case.length * 20]}) + "\n" for number in range(64)), encoding="utf-8")
        words = [
            "task=pretrain",
            f"model={model}",
            "adapter=lora",
            f"quant={case.quant}",
            "data=text",
            f"data.path={rows}",
            f"data.max_length={case.length}",
            "data.packing=false",
            "trainer=gpu",
            "trainer.precision=bf16",
            "trainer.gradient_checkpointing=true",
            f"trainer.micro_batch_size={case.micro}",
            f"trainer.batch_size={case.micro * case.micros_per_step}",
            f"trainer.max_steps={case.steps}",
            "tracker=none",
        ]
        command = [sys.executable, "-m", "largeforge", *words]
        subprocess.run([*command, f"folder={folder / 'run'}"], check=True, stdout=sys.stderr)
        metrics = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))["metrics"]
        return dict(metrics), planned_bytes(words)


def planned_bytes(words: list[str]) -> int:
    """The peak that `plan=true` says."""
    from largeforge.build import find
    from largeforge.config.compose import compose
    from largeforge.console import Console

    config: Any = compose([*words, "plan=true"]).config
    return int(find(config.task.target)(config).plan(progress=Console(live=False)).peak_bytes)
