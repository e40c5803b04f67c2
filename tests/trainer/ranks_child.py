"""One process of two that takes steps of SFT on a tiny Llama; the first saves what it saw. Run by test_ranks.py: `python -m tests.trainer.ranks_child OUT`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as Lightning
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from largeforge.batch import TokenBatch
from largeforge.contract import LoadedModel, Optimization, Reference
from largeforge.data.batches import empty
from largeforge.method.config import SFTConfig
from largeforge.method.sft import SFT
from largeforge.rank import rank_of
from largeforge.trainer.group import strategy

NUM_ROWS = 32
NUM_STEPS = 3


def rows(count: int) -> list[TokenBatch]:
    """One row a batch, of 4 to 20 tokens; the second half of each is learnt from."""
    generator = torch.Generator().manual_seed(2)
    batches = []
    for length in torch.randint(4, 21, (count,), generator=generator).tolist():
        ids = torch.randint(3, 97, (1, length), generator=generator)
        positions = torch.arange(length)[None]
        batches.append(TokenBatch(ids, positions, positions >= length // 2, num_examples=1, num_tokens=length))
    return batches


def share(count: int, rank: int, world_size: int) -> list[TokenBatch]:
    """The rows of one rank, as many as of any other: the last ones may be empty."""
    mine = rows(count)[rank::world_size]
    return mine + [empty()] * (-(-count // world_size) - len(mine))


def method(case: dict[str, Any]) -> SFT:
    """The same weights at every call."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    network: Any = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=97, tie_word_embeddings=case.get("tied", True), attn_implementation="sdpa"))
    if case.get("lora"):
        from peft import LoraConfig, get_peft_model

        network = get_peft_model(network, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    if case.get("checkpointing"):
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        network.enable_input_require_grads()
    model = LoadedModel(network=network, tokenizer=None, template="", source=Reference("model", "tiny"))
    made = SFT(SFTConfig(target="largeforge.method.sft.SFT", learning_rate=1e-3, train_on="answer"), model=model)
    if case.get("unused"):
        made.unused = torch.nn.Linear(2, 2)  # learns, and no loss asks it
    made.optimization = Optimization(
        num_steps=NUM_STEPS, schedule="constant", warmup_steps=0, weight_decay=0.1, clip_norm=1.0, optimizer=case.get("optimizer", "adamw")
    )
    return made


class Seen(Callback):
    """Gradients of each step before clipping, whole, and what the steps told."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.told: list[dict[str, float]] = []
        self.sharded = False
        self.weights: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        self.gradients.append({name: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for name, g in grads.items()})

        self.sharded = all(hasattr(g, "full_tensor") for g in grads.values())

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.told.append({name: float(value) for name, value in outputs.items()})


def take(case: dict[str, Any], batches: list[TokenBatch], shared: Any, *, world_size: int = 1) -> Seen:
    """Take the steps of one case."""
    seen, made = Seen(), method(case)
    group: dict[str, Any] = {} if world_size == 1 else {"plugins": [TorchElasticEnvironment()]}
    trainer = Lightning(
        **{"accelerator": "cpu", "devices": world_size, "strategy": shared, "max_steps": NUM_STEPS, "max_epochs": 1, "logger": False},
        **{"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False},
        callbacks=[seen],
        **group,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        trainer.fit(made, DataLoader([batches] * NUM_STEPS, batch_size=None))
    whole = made._whole if made._whole is not None else made.network.state_dict()
    seen.weights = {name: tensor.clone() for name, tensor in whole.items()}
    return seen


CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp_odd": {"num_rows": 31},
    "ddp_one_row": {"num_rows": 1},
    "ddp_lora": {"lora": True},
    "ddp_checkpointing": {"checkpointing": True, "lora": True},
    "ddp_unused": {"unused": True},
    "ddp_adafactor": {"optimizer": "adafactor"},
    "fsdp": {},
    "fsdp_odd": {"num_rows": 31},
    "fsdp_untied": {"tied": False},
    "fsdp_lora": {"lora": True},
    "fsdp_checkpointing": {"checkpointing": True},
}


def main(out: Path) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {}
    for name, case in CASES.items():
        shared = strategy(name.partition("_")[0], rank_of(os.environ), skips=bool(case.get("unused")))
        seen = take(case, share(case.get("num_rows", NUM_ROWS), rank, world_size), shared, world_size=world_size)
        found[name] = {"gradients": seen.gradients, "told": seen.told, "sharded": seen.sharded, "weights": seen.weights}
    if rank == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
