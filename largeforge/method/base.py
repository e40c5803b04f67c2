"""What every method shares: one training_step is one optimizer step, exact over any split of the batch (law 6).

A method says `loss(batch)`, terms that are sums over their own unit, and `weights(batch)`, the number of units. The totals
over all micro-batches and ranks are known before the first backward pass, so that the gradient is divided once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from largeforge.contract import LoadedModel, Optimization, Term, TokenBatch
from largeforge.method.config import MethodConfig


class Method(LightningModule):
    """A LightningModule that steps by hand.

    Args:
        config: the method's typed config.
        model: network and tokenizer; the network's trainable parameters are those with `requires_grad`.
    """

    def __init__(self, config: MethodConfig, *, model: LoadedModel) -> None:
        super().__init__()
        # the loop calls training_step once per optimizer step; what happens inside is ours
        self.automatic_optimization = False
        # checkpoints hold only what learns: frozen weights come from their source
        self.strict_loading = False
        self.config = config
        self.model = model
        self.network: Any = model.network
        self.optimization = Optimization(num_steps=1, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0)
        self.gradient_norm = 0.0

    # ---- what a method says ----

    def loss(self, batch: Any) -> list[Term]:
        """Return the terms of the loss, each a sum over its own unit."""
        raise NotImplementedError

    def weights(self, batch: Any) -> dict[str, int]:
        """Return how many units each term sums over, by the term's name; no forward pass."""
        raise NotImplementedError

    # ---- one optimizer step ----

    def training_step(self, batches: list[TokenBatch], batch_idx: int) -> dict[str, Any]:
        """Take one optimizer step over the micro-batches; returns the loss and its terms as means."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        totals = self._totals(batches)
        means = self.backward_through(batches, totals)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return {**means, "gradient_norm": self.gradient_norm, "learning_rate": rate}

    def backward_through(self, batches: Sequence[TokenBatch], totals: dict[str, float]) -> dict[str, Tensor]:
        """Accumulate the gradient of the whole step; `totals` are weights over all micro-batches and ranks."""
        world = self.trainer.world_size
        means: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with self._synchronised(last=index == len(batches) - 1):
                terms = self.loss(batch)
                # DDP averages gradients over ranks: times world makes that the sum that the totals ask for
                self.manual_backward(_total(terms, totals) * world)
            for term in terms:
                means[term.name] = means.get(term.name, 0.0) + term.sum.detach() / totals[term.name]
            means["loss"] = means.get("loss", 0.0) + _total(terms, totals).detach()
        return means

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip once, on unscaled gradients: Lightning calls this after a loss scaler has unscaled."""
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        limit = self.optimization.clip_norm or math.inf
        self.gradient_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def validation_step(self, batches: list[TokenBatch], batch_idx: int) -> None:
        """Add one validation micro-batch to the running sums."""
        for batch in batches:
            weights = self.weights(batch)
            for term in self.loss(batch):
                total, weight = self._validation.get(term.name, (0.0, 0.0))
                self._validation[term.name] = (total + float(term.sum) * term.coefficient, weight + weights[term.name])

    def on_validation_epoch_start(self) -> None:
        self._validation: dict[str, tuple[float, float]] = {}

    @property
    def validation_loss(self) -> float:
        """Loss over the validation rows, of the last validation."""
        return sum(total / weight for total, weight in self._validation.values())

    # ---- what Lightning asks ----

    def configure_optimizers(self) -> Any:
        """AdamW over what learns; decay on matrices alone; warm-up, then the schedule."""
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in learning if p.ndim >= 2], "weight_decay": self.optimization.weight_decay},
            {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # a fused optimizer unscales inside its step, after our clipping: not under a loss scaler
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=not scaled)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.optimization_factor)}

    def optimization_factor(self, step: int) -> float:
        """Learning rate at `step` as a share of its peak, in [0, 1]."""
        plan = self.optimization
        if step < plan.warmup_steps:
            return (step + 1) / plan.warmup_steps
        done = (step - plan.warmup_steps) / max(1, plan.num_steps - plan.warmup_steps)
        return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))}[plan.schedule]

    def on_train_start(self) -> None:
        """Under autocast, spare LoRA layers a cast of their input to fp32 that autocast undoes: exact, and a tenth of a step on a CPU."""
        self._set_input_casts(enabled=self.trainer.precision_plugin.precision == "32-true")

    def on_train_end(self) -> None:
        self._set_input_casts(enabled=True)

    def _set_input_casts(self, *, enabled: bool) -> None:
        for module in self.network.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = enabled

    def transfer_batch_to_device(self, batch: list[TokenBatch], device: torch.device, dataloader_idx: int) -> list[TokenBatch]:
        return [micro.to(device) for micro in batch]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in learning}

    def export(self, folder: Path) -> str:
        """Write network and tokenizer as Hugging Face files, template included; return the artifact's kind."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        self.network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return "adapter" if (folder / "adapter_config.json").is_file() else "model"

    # ---- inside ----

    def _totals(self, batches: Sequence[TokenBatch]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch in batches:
            for name, weight in self.weights(batch).items():
                totals[name] = totals.get(name, 0.0) + weight
        if self.trainer.world_size > 1:
            names = sorted(totals)
            summed = self.trainer.strategy.reduce(torch.tensor([totals[n] for n in names], dtype=torch.float64, device=self.device), reduce_op="sum")
            totals = dict(zip(names, summed.tolist(), strict=True))
        return totals

    def _synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients between ranks in the last backward pass only."""
        module = self.trainer.strategy.model
        if last or not hasattr(module, "no_sync"):
            return nullcontext()
        return module.no_sync()  # type: ignore[no-any-return, union-attr, operator]


def _total(terms: Sequence[Term], totals: dict[str, float]) -> Tensor:
    parts = [term.sum * (term.coefficient / totals[term.name]) for term in terms]
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]
