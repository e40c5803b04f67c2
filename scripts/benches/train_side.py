"""One side of the bench of training methods, in a process of its own: imports, then the peak is reset, then models, rows and steps.

Called by train.py with one JSON argument; writes one JSON file. Our side is the task itself, as a user would start it; the peer's is TRL's
trainer on the token ids and masks that our side makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.benches.sft_side import Clock

LEARNING_RATE = 1e-4
METHODS = ("dpo", "orpo", "distill")


def main(facts: dict[str, Any]) -> None:
    """Measure one side; both import the same libraries, so that growth starts from the same ground."""
    import lightning.pytorch  # noqa: F401
    import peft  # noqa: F401
    import torch
    from trl import DPOTrainer, SFTTrainer  # noqa: F401
    from trl.experimental.gkd import GKDTrainer  # noqa: F401
    from trl.experimental.orpo import ORPOTrainer  # noqa: F401

    from largeforge.config.compose import compose
    from largeforge.trainer.memory import reset_peak, resident_bytes

    torch.set_num_threads(facts["threads"])
    composed = compose(words(facts))
    in_a_child(composed)
    reset_peak("cpu")
    start = resident_bytes("cpu")
    clock = PeakClock()
    run = ours if facts["side"] == "ours" else trl
    done = run(composed, facts, clock)
    steps = facts["steps"] - 1
    result = {
        **done,
        "wall_s": clock.wall_s,
        "rows_per_s": facts["rows"] * steps / clock.wall_s,
        "tokens_per_s": done["tokens"] * steps / clock.wall_s,
        "rows_per_cpu_s": facts["rows"] * steps / clock.cpu_s,
        "growth_mib": (clock.peak - start) / 2**20,
    }
    Path(facts["out"]).write_text(json.dumps(result), encoding="utf-8")


def words(facts: dict[str, Any]) -> list[str]:
    """The command line of our side."""
    method, model = facts["method"], facts["model"]
    said = [
        f"task={method}",
        f"model={model}",
        f"adapter={facts['adapter']}",
        f"data={'chat' if method == 'distill' else 'preference'}",
        f"data.path={facts['data']}",
        f"data.max_length={facts['length']}",
        "data.packing=false",
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
    if method == "orpo":
        said.append("method.train_on=all")  # as TRL does
    if method == "distill":
        said += ["method.nll_weight=0", "method.divergence=forward_kl", f"teacher={model}", *(["teacher.init_seed=1"] if model == "nano" else [])]
    return said


class PeakClock(Clock):
    """Seconds from the end of the first step to the end of the last, and the peak of resident memory until then."""

    peak = 0

    def step_ended(self) -> None:
        from largeforge.trainer.memory import peak_bytes

        super().step_ended()
        self.peak = peak_bytes("cpu")


def in_a_child(composed: Any) -> None:
    """Make model and tokens in the cache before anything is measured, in a process that is forked off and forgotten."""
    import os

    pid = os.fork()
    if pid == 0:
        rows_of(composed.config)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0


def rows_of(config: Any) -> Any:
    """The data module of a config, prepared, with the tokenizer of its model."""
    from largeforge.build import build

    model = build(config.model).load(trainable=False)
    data = build(config.data, tokenizer=model.tokenizer, template=model.template, train_on=config.method.train_on, learns=config.method.learns)
    data.prepare()
    return data


def ours(composed: Any, facts: dict[str, Any], clock: PeakClock) -> dict[str, Any]:
    """The task itself, with a hook of the loop for the clock."""
    from lightning.pytorch import Callback

    from largeforge.build import find
    from largeforge.console import Console
    from largeforge.run import Run
    from largeforge.trainer.base import Trainer

    losses: list[float] = []
    tokens = 0

    class Hook(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            nonlocal tokens
            losses.append(float(outputs["loss"]))
            tokens = sum(micro.num_tokens for micro in batch)
            clock.step_ended()

    fit = Trainer.fit

    def watched(self: Any, *arguments: Any) -> Any:
        self.watchers.append(Hook())
        return fit(self, *arguments)

    Trainer.fit = watched  # type: ignore[method-assign, assignment]
    folder = Path(composed.config.folder)
    folder.mkdir()
    story = find(composed.config.task.target)(composed.config)
    story.run(Run(composed, folder=folder, progress=Console(live=False)))
    return {"losses": losses, "tokens": tokens}


def trl(composed: Any, facts: dict[str, Any], clock: PeakClock) -> dict[str, Any]:
    """TRL's trainer on our token ids and masks."""
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback

    from largeforge.build import build
    from largeforge.trainer.device import CPU

    config = composed.config
    precision = CPU(config.trainer).precision
    frozen = facts["adapter"] == "lora"
    model = build(config.model).load(trainable=not frozen, precision=precision, quant=build(config.quant), adapter=None)
    rows = rows_of(config).sample(facts["rows"])
    losses: list[float] = []

    class Hook(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.step_ended()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "loss" in (kwargs.get("logs") or {}):
                losses.append(float(kwargs["logs"]["loss"]))

    shared = {
        "output_dir": facts["folder"],
        "max_steps": facts["steps"],
        "per_device_train_batch_size": facts["micro"],
        "gradient_accumulation_steps": facts["rows"] // facts["micro"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": config.trainer.clip_norm,
        "optim": "adamw_torch_fused",
        "bf16": precision == "bf16",
        "use_cpu": True,
        "gradient_checkpointing": False,
        "max_length": facts["length"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }
    peft = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM") if frozen else None
    torch.manual_seed(0)
    make = {"dpo": trl_dpo, "orpo": trl_orpo, "distill": trl_gkd}[facts["method"]]
    trainer = make(config, model, rows, shared, peft, Hook())
    trainer.train()
    return {"losses": losses, "tokens": sum(len(row.token_ids) for row in rows)}


def trl_dpo(config: Any, model: Any, rows: list[Any], shared: dict[str, Any], peft: Any, hook: Any) -> Any:
    """DPOTrainer; its reference is the adapter switched off, or a copy, as on our side."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from largeforge.build import build

    table = []
    for chosen, rejected in zip(rows[0::2], rows[1::2], strict=True):
        begin = chosen.supervised.index(True)
        table.append({"prompt_ids": chosen.token_ids[:begin], "chosen_ids": chosen.token_ids[begin:], "rejected_ids": rejected.token_ids[begin:]})
    setattr(DPOTrainer, "_prepare_dataset", lambda self, dataset, *rest, **more: dataset)  # noqa: B010
    reference = None if peft is not None else build(config.model).load(trainable=False, precision=shared["bf16"] and "bf16" or "fp32").network
    arguments = DPOConfig(**shared, beta=config.method.beta, precompute_ref_log_probs=False)
    return DPOTrainer(
        model=model.network,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(table),
        processing_class=model.tokenizer,
        peft_config=peft,
        callbacks=[hook],
    )


def trl_orpo(config: Any, model: Any, rows: list[Any], shared: dict[str, Any], peft: Any, hook: Any) -> Any:
    """ORPOTrainer, which trains the prompt too."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    table = []
    for chosen, rejected in zip(rows[0::2], rows[1::2], strict=True):
        row: dict[str, Any] = {"prompt": "", "chosen": "a", "rejected": "b"}
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            row |= {f"{name}_input_ids": side.token_ids, f"{name}_attention_mask": [1] * len(side.token_ids), f"{name}_labels": side.token_ids}
        table.append(row)
    setattr(ORPOTrainer, "tokenize_row", lambda self, feature, *rest: {})  # noqa: B010
    arguments = ORPOConfig(**shared, beta=config.method.beta, remove_unused_columns=False)
    return ORPOTrainer(
        model=model.network, args=arguments, train_dataset=Dataset.from_list(table), processing_class=model.tokenizer, peft_config=peft, callbacks=[hook]
    )


def trl_gkd(config: Any, model: Any, rows: list[Any], shared: dict[str, Any], peft: Any, hook: Any) -> Any:
    """GKDTrainer with lmbda=0, which takes the rows' answers."""
    import torch
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from largeforge.build import build

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(item["input_ids"]) for item in items)
        ids = torch.tensor([item["input_ids"] + [0] * (width - len(item["input_ids"])) for item in items])
        mask = torch.tensor([[1] * len(item["input_ids"]) + [0] * (width - len(item["input_ids"])) for item in items])
        learnt = torch.tensor([item["learnt"] + [0] * (width - len(item["input_ids"])) for item in items])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(learnt == 0, -100), "prompts": ids[:, :1]}

    table = Dataset.from_list([{"input_ids": row.token_ids, "learnt": [int(flag) for flag in row.supervised]} for row in rows])
    teacher = build(config.teacher).load(trainable=False, precision="bf16" if shared["bf16"] else "fp32").network
    arguments = GKDConfig(**shared, lmbda=0.0, beta=0.0, temperature=1.0, seq_kd=False, dataset_kwargs={"skip_prepare_dataset": True})
    return GKDTrainer(
        model=model.network,
        teacher_model=teacher,
        args=arguments,
        data_collator=collate,
        train_dataset=table,
        processing_class=model.tokenizer,
        peft_config=peft,
        callbacks=[hook],
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
