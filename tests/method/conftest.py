"""A tiny Llama in fp32, hand-made batches, and the gradient of one real training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as Lightning
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from largeforge.batch import TokenBatch
from largeforge.contract import LoadedModel, Reference
from largeforge.method.base import Method
from largeforge.method.config import SFTConfig
from largeforge.method.sft import SFT

VOCABULARY = 97
Row = tuple[list[int], list[bool]]


@pytest.fixture
def tiny() -> Callable[..., LoadedModel]:
    """Make a Llama of two layers: the same weights at every call."""

    def make(**changes: Any) -> LoadedModel:
        torch.manual_seed(1)
        shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        shape |= {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "tie_word_embeddings": True, "attn_implementation": "sdpa"}
        network = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
        return LoadedModel(network=network, tokenizer=None, template="", source=Reference("model", "tiny"))

    return make


@pytest.fixture
def rows() -> list[Row]:
    """32 rows of 4 to 20 tokens; the second half of each is learnt from."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(4, 21, (32,), generator=generator).tolist()
    return [(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist(), [i >= n // 2 for i in range(n)]) for n in lengths]


def padded(rows: Sequence[Row]) -> TokenBatch:
    """Right-padded rows, one a sequence."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in rows])
    supervised = torch.tensor([[*mask, *[False] * (width - len(mask))] for _, mask in rows])
    positions = torch.arange(width).expand(len(rows), width)
    return TokenBatch(ids, positions, supervised, num_examples=len(rows), num_tokens=sum(len(ids) for ids, _ in rows))


def packed(rows: Sequence[Row]) -> TokenBatch:
    """All rows behind one another in one sequence."""
    ids = torch.tensor([[token for ids, _ in rows for token in ids]])
    supervised = torch.tensor([[flag for _, mask in rows for flag in mask]])
    positions = torch.tensor([[position for ids, _ in rows for position in range(len(ids))]])
    return TokenBatch(ids, positions, supervised, num_examples=len(rows), num_tokens=ids.shape[1])


def sft(model: LoadedModel, *, learning_rate: float = 1e-3) -> SFT:
    return SFT(SFTConfig(target="largeforge.method.sft.SFT", learning_rate=learning_rate, train_on="answer"), model=model)


class _Capture(Callback):
    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.outputs: dict[str, Any] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs = {name: float(value) for name, value in outputs.items()}


def one_step(method: Method, batches: list[TokenBatch]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Run one training_step through Lightning; return the gradient before clipping and what the step reported."""
    capture = _Capture()
    trainer = Lightning(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[capture]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        trainer.fit(method, DataLoader([batches], batch_size=None))
    return capture.gradients, capture.outputs


def relative_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """|left - right| / |right| over all gradients as one vector."""
    assert left.keys() == right.keys() and left
    one, two = (torch.cat([grads[name].flatten() for name in sorted(left)]) for grads in (left, right))
    return float((one - two).norm() / two.norm())
