"""TRL's trainers as oracles: each is given the network as it stands and one batch of ours, and says its loss. Trains nothing.

Imports TRL when it is asked, which takes some seconds. Shapes: B sequences, T positions, A answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largeforge.batch import AnswerBatch, TokenBatch
from largeforge.errors import MissingExtra


@dataclass(frozen=True)
class Peer:
    """One of TRL's trainers with a network of its own.

    Args:
        name: of the trainer.
        network: a copy of the one that is proven.
        loss: batch -> its loss, as the trainer computes it.
        differs: what to know about the comparison.
    """

    name: str
    network: Any
    loss: Callable[[Any], Tensor]
    differs: str = ""


def peer_of(method: str, *, config: Any, network: Any, second: Any, tokenizer: Any, folder: Path, device: str) -> Peer | None:
    """Return TRL's trainer for a method; None where it has none.

    Args:
        method: class name: "SFT", "DPO" ...
        config: the method's own.
        network: the copy that the peer may keep.
        second: a copy of the reference or the teacher, where the method has one.
        tokenizer: of both.
        folder: for what TRL writes.
        device: "cpu" or "cuda".

    Raises:
        MissingExtra: TRL is not installed.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        import trl  # noqa: F401
    except ImportError as fault:
        raise MissingExtra("trl", extra="proof") from fault
    from datasets import disable_progress_bars

    disable_progress_bars()  # of the one row that its trainers want to see
    make = {"SFT": _sft, "Pretrain": _sft, "DPO": _dpo, "KTO": _kto, "ORPO": _orpo, "SimPO": _simpo, "Distill": _gkd}.get(method)
    if make is None:
        return None
    shared = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "bf16": False,
        "fp16": False,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_length": None,
    }
    return make(config, network, second, tokenizer, shared)


def _padded(batch: TokenBatch) -> dict[str, Tensor]:
    """Ids and attention mask; padding stands behind the last token of a sequence."""
    lengths_B = _lengths(batch)
    mask_BT = (batch.position_ids_BT < lengths_B[:, None]).long()
    return {"input_ids": batch.input_ids_BT, "attention_mask": mask_BT}


def _lengths(batch: TokenBatch) -> Tensor:
    """Tokens of each sequence of a padded batch: up to its last supervised one, behind which nothing counts."""
    places_BT = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device).expand_as(batch.input_ids_BT)
    return torch.where(batch.supervised_BT, places_BT, -1).amax(1) + 1


def _sft(config: Any, network: Any, second: Any, tokenizer: Any, shared: dict[str, Any]) -> Peer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**shared, completion_only_loss=True, packing=False)
    table = Dataset.from_list([{"input_ids": [1, 2, 3], "completion_mask": [0, 1, 1]}])
    trainer = SFTTrainer(model=network, args=arguments, train_dataset=table, processing_class=tokenizer)

    def loss(batch: TokenBatch) -> Tensor:
        labels = batch.input_ids_BT.masked_fill(~batch.supervised_BT, -100)
        found: Tensor = trainer.compute_loss(trainer.model, {**_padded(batch), "labels": labels}, num_items_in_batch=batch.supervised_BT.sum())
        return found

    return Peer("SFTTrainer", network, loss)


def _dpo(config: Any, network: Any, second: Any, tokenizer: Any, shared: dict[str, Any]) -> Peer:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Oracle(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
            return dataset

    arguments = DPOConfig(**shared, beta=config.beta, loss_type=[config.loss], disable_dropout=True)
    table = Dataset.from_list([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}])
    trainer = Oracle(model=network, ref_model=second, args=arguments, train_dataset=table, processing_class=tokenizer)

    def loss(batch: AnswerBatch) -> Tensor:
        order = [*range(0, batch.num_answers, 2), *range(1, batch.num_answers, 2)]  # chosen ones first
        inputs = {name: values[order] for name, values in _padded(batch.tokens).items()}
        found: Tensor = trainer.compute_loss(trainer.model, {**inputs, "completion_mask": batch.tokens.supervised_BT[order].long()})
        return found

    return Peer("DPOTrainer", network, loss)


def _kto(config: Any, network: Any, second: Any, tokenizer: Any, shared: dict[str, Any]) -> Peer:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class Oracle(KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
            return dataset

    shared = {**shared, "per_device_train_batch_size": 2}
    weights = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
    arguments = KTOConfig(**shared, beta=config.beta, disable_dropout=True, **weights)
    row = {"prompt_ids": [1], "completion_ids": [2], "KL_completion_ids": [3], "label": True}
    trainer = Oracle(model=network, ref_model=second, args=arguments, train_dataset=Dataset.from_list([row, row]), processing_class=tokenizer)

    def loss(batch: AnswerBatch) -> Tensor:
        assert batch.mismatched is not None
        crossed = batch.mismatched.tokens
        kl = {f"KL_{name}": values for name, values in _padded(crossed).items()} | {"KL_completion_mask": crossed.supervised_BT.long()}
        own = {**_padded(batch.tokens), "completion_mask": batch.tokens.supervised_BT.long(), "label": batch.desirable_A}
        found: Tensor = trainer.compute_loss(trainer.model, {**own, **kl})
        return found

    return Peer("KTOTrainer", network, loss, "TRL takes the KL of each micro-batch from its own rows; both sides are given the step's mismatched rows here.")


def _orpo(config: Any, network: Any, second: Any, tokenizer: Any, shared: dict[str, Any]) -> Peer:
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class Oracle(ORPOTrainer):  # type: ignore[misc]
        def tokenize_row(self, feature: Any, *rest: Any) -> dict[str, Any]:
            return {}

    arguments = ORPOConfig(**{**shared, "max_length": 1 << 20}, beta=config.beta, remove_unused_columns=False, disable_dropout=True)
    table = Dataset.from_list([{"prompt": "", "chosen": "a", "rejected": "b"}])
    trainer = Oracle(model=network, args=arguments, train_dataset=table, processing_class=tokenizer)

    def loss(batch: AnswerBatch) -> Tensor:
        found: Tensor = trainer.compute_loss(trainer.model, _pairs(batch, _padded(batch.tokens)["attention_mask"] == 1))
        return found

    return Peer("ORPOTrainer", network, loss, "TRL's ORPO trains the prompt too: method.train_on=all on our side.")


def _simpo(config: Any, network: Any, second: Any, tokenizer: Any, shared: dict[str, Any]) -> Peer:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    class Oracle(CPOTrainer):  # type: ignore[misc]
        def tokenize_row(self, feature: Any, *rest: Any) -> dict[str, Any]:
            return {}

    own = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": config.beta, "simpo_gamma": config.margin, "disable_dropout": True}
    arguments = CPOConfig(**{**shared, "max_length": 1 << 20}, **own, remove_unused_columns=False)
    table = Dataset.from_list([{"prompt": "", "chosen": "a", "rejected": "b"}])
    trainer = Oracle(model=network, args=arguments, train_dataset=table, processing_class=tokenizer)

    def loss(batch: AnswerBatch) -> Tensor:
        found: Tensor = trainer.compute_loss(trainer.model, _pairs(batch, batch.tokens.supervised_BT))
        return found

    return Peer("CPOTrainer", network, loss, "SimPO is TRL's CPO with loss_type=simpo and cpo_alpha=0.")


def _pairs(batch: AnswerBatch, labelled_BT: Tensor) -> dict[str, Tensor]:
    """Chosen and rejected answers, each with its mask and its labels, as ORPO's and CPO's trainers take them."""
    ids_BT, mask_BT = _padded(batch.tokens).values()
    labels_BT = ids_BT.masked_fill(~labelled_BT, -100)
    inputs: dict[str, Tensor] = {}
    for name, first in (("chosen", 0), ("rejected", 1)):
        inputs |= {f"{name}_input_ids": ids_BT[first::2], f"{name}_attention_mask": mask_BT[first::2], f"{name}_labels": labels_BT[first::2]}
    return inputs


def _gkd(config: Any, network: Any, second: Any, tokenizer: Any, shared: dict[str, Any]) -> Peer:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": config.jsd_beta}[config.divergence]
    arguments = GKDConfig(**shared, lmbda=0.0, beta=beta, temperature=1.0, seq_kd=False, dataset_kwargs={"skip_prepare_dataset": True})
    table = Dataset.from_list([{"input_ids": [1, 2, 3]}])
    trainer = GKDTrainer(
        model=network, teacher_model=second, args=arguments, data_collator=lambda items: items, train_dataset=table, processing_class=tokenizer
    )

    def loss(batch: TokenBatch) -> Tensor:
        labels = batch.input_ids_BT.masked_fill(~batch.supervised_BT, -100)
        inputs = {**_padded(batch), "labels": labels, "prompts": batch.input_ids_BT[:, :1]}
        found: Tensor = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=batch.supervised_BT.sum())
        return found

    return Peer("GKDTrainer", network, loss, "TRL's beta 0 is forward KL, its beta 1 reverse KL.")
