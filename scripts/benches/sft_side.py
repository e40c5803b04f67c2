"""One side of the SFT bench, in a process of its own: imports, then the peak is reset, then model, rows and steps.

Called by sft.py with one JSON argument; writes one JSON file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-4


def main(facts: dict[str, Any]) -> None:
    """Measure one side; both import the same libraries, so that growth starts from the same ground."""
    import datasets  # noqa: F401
    import lightning.pytorch  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    from largeforge.config.compose import compose
    from largeforge.trainer.memory import peak_bytes, reset_peak, resident_bytes

    torch.set_num_threads(facts["threads"])
    words = [
        "task=sft",
        f"model={facts['model']}",
        f"adapter={facts['adapter']}",
        "data=chat",
        f"data.path={facts['data']}",
        "data.format=prompt_completion",
        f"data.limit={facts['rows']}",
        "data.on_bad_row=skip",
        f"data.max_length={facts['length']}",
        f"data.packing={str(facts['packing']).lower()}",
        f"trainer.batch_size={facts['rows']}",
        f"trainer.micro_batch_size={facts['micro']}",
        f"trainer.max_steps={facts['steps']}",
        f"trainer.threads={facts['threads']}",
        "trainer.schedule=constant",
        "trainer.warmup_ratio=0",
        "trainer=cpu",
        "tracker=none",
        "benchmark=none",
        f"method.learning_rate={LEARNING_RATE}",
        f"folder={facts['folder']}/run",
    ]
    composed = compose(words)
    prepare_tokens(composed.config)
    reset_peak("cpu")
    start = resident_bytes("cpu")
    clock = Clock()
    run = ours if facts["side"] == "ours" else trl
    supervised, losses = run(composed, facts, clock)
    timed = supervised * (facts["steps"] - 1)
    result = {
        "supervised": supervised,
        "losses": losses,
        "wall_s": clock.wall_s,
        "cpu_s": clock.cpu_s,
        "tokens_per_s": timed / clock.wall_s,
        "tokens_per_cpu_s": timed / clock.cpu_s,
        "growth_mib": (peak_bytes("cpu") - start) / 2**20,
    }
    Path(facts["out"]).write_text(json.dumps(result), encoding="utf-8")


class Clock:
    """Wall and CPU seconds from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.wall_s = self.cpu_s = 0.0
        self._wall = self._cpu = 0.0

    def step_ended(self) -> None:
        self.num_steps += 1
        now = time.perf_counter(), time.process_time()
        if self.num_steps == 1:
            self._wall, self._cpu = now
        self.wall_s, self.cpu_s = now[0] - self._wall, now[1] - self._cpu


def prepare_tokens(config: Any) -> None:
    """Make model and tokens in the cache before anything is measured, in a process that is forked off and forgotten."""
    import os

    from largeforge.build import build

    pid = os.fork()
    if pid == 0:
        load_rows(config, build(config.model).load(trainable=False))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0


def load_rows(config: Any, model: Any) -> Any:
    from largeforge.build import build

    data = build(config.data, tokenizer=model.tokenizer, template=model.template, train_on="answer")
    data.prepare()
    return data


def ours(composed: Any, facts: dict[str, Any], clock: Clock) -> tuple[int, list[float]]:
    """The train story's own parts, and the hook of the loop for the clock."""
    import torch
    from lightning.pytorch import Callback

    from largeforge.build import build
    from largeforge.console import Console
    from largeforge.run import Run

    losses: list[float] = []

    class Hook(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["loss"]))
            clock.step_ended()

    config = composed.config
    folder = Path(config.folder)
    folder.mkdir()
    run = Run(composed, folder=folder, progress=Console(live=False))
    trainer = build(config.trainer, tracker=build(config.tracker, folder=folder, values={}, name=None), run=run)
    trainer.watchers.append(Hook())
    torch.manual_seed(0)
    adapter = build(config.adapter, seed=0)
    model = build(config.model).load(trainable=True, precision=trainer.precision, quant=build(config.quant), adapter=adapter)
    data = load_rows(config, model)
    metrics = trainer.fit(build(config.method, model=model), data)
    return int(metrics["supervised_tokens"] / metrics["steps"]), losses


def trl(composed: Any, facts: dict[str, Any], clock: Clock) -> tuple[int, list[float]]:
    """TRL's SFTTrainer on the token ids and masks that our side makes."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from largeforge.build import build
    from largeforge.trainer.device import CPU

    config = composed.config
    precision = CPU(config.trainer).precision
    frozen = facts["adapter"] == "lora"
    # full fine-tuning keeps fp32 weights under autocast on both sides; frozen weights are bf16 on both
    model = build(config.model).load(trainable=not frozen, precision=precision, quant=build(config.quant), adapter=None)
    data = load_rows(config, model)
    rows = data.sample(facts["rows"])
    table = Dataset.from_list([{"input_ids": row.token_ids, "completion_mask": [int(flag) for flag in row.supervised]} for row in rows])
    supervised = sum(sum(row.supervised) for row in rows)
    losses: list[float] = []

    class Hook(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.step_ended()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "loss" in (kwargs.get("logs") or {}):
                losses.append(float(kwargs["logs"]["loss"]))

    num_sequences = len(packed_rows(table, facts["length"])) if facts["packing"] else len(rows)
    arguments = SFTConfig(
        output_dir=facts["folder"],
        max_steps=facts["steps"],
        per_device_train_batch_size=facts["micro"],
        gradient_accumulation_steps=-(-num_sequences // facts["micro"]),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=config.trainer.clip_norm,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        use_cpu=True,
        gradient_checkpointing=False,
        completion_only_loss=True,
        packing=facts["packing"],
        max_length=facts["length"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    peft = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM") if frozen else None
    torch.manual_seed(0)
    trainer = SFTTrainer(model=model.network, args=arguments, train_dataset=table, processing_class=model.tokenizer, peft_config=peft, callbacks=[Hook()])
    trainer.train()
    return supervised, losses


def packed_rows(table: Any, length: int) -> Any:
    """TRL's own packing, to know how many sequences make one step."""
    from trl import pack_dataset

    return pack_dataset(table, seq_length=length, strategy="bfd")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
