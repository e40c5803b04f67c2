"""What every method shares: one training_step is one optimizer step, exact over any split of the batch (law 6).

A method says `loss(batch)`, terms that are sums over their own unit, and `weights(batch)`, the number of units. The totals
over all micro-batches and ranks are known before the first backward pass, so that the gradient is divided once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from largeforge.batch import Annotation
from largeforge.contract import LoadedModel, Optimization, Term
from largeforge.method.config import MethodConfig
from largeforge.method.head import SupervisedHead
from largeforge.method.optimizers import make_optimizer, rate_factor
from largeforge.method.sharding import is_sharded, shard, whole_weights

SUPERVISED = "supervised_tokens"


class Method(LightningModule):
    """A LightningModule that steps by hand.

    Args:
        config: the method's typed config.
        model: network and tokenizer; the network's trainable parameters are those with `requires_grad`.
    """

    skips_parameters: bool = False

    def __init__(self, config: MethodConfig, *, model: LoadedModel) -> None:
        super().__init__()
        # the loop calls training_step once per optimizer step; what happens inside is ours
        self.automatic_optimization = False
        # checkpoints hold only what learns: frozen weights come from their source
        self.strict_loading = False
        self.config = config
        self.model = model
        self.network: Any = model.network
        self.head = SupervisedHead(model.network)
        self.optimization = Optimization(num_steps=1, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0)
        self.gradient_norm = 0.0
        self.overflowed = False
        """Whether the last step's gradient was too large for fp16 as it was scaled: that step changed nothing, and the schedule waits for the next."""
        self.accepts: Callable[[float], bool] = math.isfinite  # whether a step of this loss, a mean over all ranks, may be taken
        self.bytes_per_token = 0.0
        self._noted: dict[str, tuple[float, float]] = {}
        self._validated: dict[str, tuple[float, float]] = {}
        self._frozen: list[Any] = []
        self._whole: dict[str, Tensor] | None = None

    # ---- what a method says ----

    def loss(self, batch: Any) -> list[Term]:
        """Return the terms of the loss, each a sum over its own unit."""
        raise NotImplementedError

    def weights(self, batch: Any) -> dict[str, int]:
        """Return how many units each term sums over, by the term's name; no forward pass."""
        raise NotImplementedError

    def before_step(self, batches: Sequence[Any]) -> Sequence[Any]:
        """Do what needs the whole optimizer step at once, before its first loss; return the micro-batches to learn from."""
        return batches

    def annotations(self) -> list[Annotation]:
        """What shall be computed about every row once, before training."""
        return []

    def note(self, name: str, total: Tensor | float, count: float) -> None:
        """Record a measure inside `loss`: its mean over the step, or over the validation rows, is logged under `name`.

        Args:
            name: "preference_accuracy" ...
            total: a sum over units; a tensor is detached.
            count: units.
        """
        value = total.detach() if isinstance(total, Tensor) else total
        before, units = self._noted.get(name, (0.0, 0.0))
        self._noted[name] = (before + value, units + count)  # type: ignore[assignment]

    # ---- one optimizer step ----

    def training_step(self, batches: Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """Take one optimizer step over the micro-batches; returns the loss and its terms as means over all ranks, and measures."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self._noted = {}
        self.overflowed = False
        batches = self.before_step(batches)
        totals = self._totals(batches)
        means = self.backward_through(batches, totals)
        rate = optimizer.param_groups[0]["lr"]
        taken = self.accepts(float(means["loss"]))
        try:
            if taken:  # else weights, optimizer and schedule stay as they were
                optimizer.step()
                if not self.overflowed:
                    scheduler: Any = self.lr_schedulers()
                    scheduler.step()
        except _NoGradient:
            taken = False
        return {
            **means,
            "gradient_norm": self.gradient_norm,
            "learning_rate": rate,
            "taken": taken,
            "overflow": float(self.overflowed),
            SUPERVISED: totals[SUPERVISED],
        }

    def backward_through(self, batches: Sequence[Any], totals: dict[str, float]) -> dict[str, Any]:
        """Accumulate the gradient of the whole step; `totals` are weights over all micro-batches and ranks."""
        world = self.trainer.world_size
        sums: dict[str, Any] = {"loss": 0.0}
        for index, batch in enumerate(batches):
            self._synchronise(last=index == len(batches) - 1)
            terms = self.loss(batch)
            # DDP and FSDP average gradients over ranks: times world makes that the sum that the totals ask for
            self.manual_backward(_total(terms, totals) * world)
            for term in terms:
                sums[term.name] = sums.get(term.name, 0.0) + term.sum.detach() / (totals[term.name] or 1.0)
            sums["loss"] = sums["loss"] + _total(terms, totals).detach()
        return self._over_ranks(sums)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip once, on unscaled gradients: Lightning calls this after a loss scaler has unscaled."""
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        limit = self.optimization.clip_norm or math.inf
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, limit)
        # FSDP2 gives a sharded tensor, whose whole value is asked for
        self.gradient_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        # a loss scaler sees such gradients by itself, skips the step and tries a smaller scale
        if not math.isfinite(self.gradient_norm):
            if not self._scaled:
                raise _NoGradient
            self.overflowed, self.gradient_norm = True, 0.0

    @property
    def _scaled(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    # ---- validation ----

    def on_validation_epoch_start(self) -> None:
        self._validated = {}
        self._noted = {}

    def validation_step(self, batches: Sequence[Any], batch_idx: int) -> None:
        """Add one validation micro-batch to the running sums."""
        batches = self.before_step(batches)
        for batch in batches:
            weights = self.weights(batch)
            for term in self.loss(batch):
                total, weight = self._validated.get(term.name, (0.0, 0.0))
                self._validated[term.name] = (total + float(term.sum) * term.coefficient, weight + weights[term.name])

    def on_validation_epoch_end(self) -> None:
        """Bring the sums of all ranks together."""
        self._validated = self._pairs_over_ranks(self._validated)
        self._noted = self._pairs_over_ranks(self._noted)

    @property
    def validation_loss(self) -> float:
        """Loss over the validation rows, of the last validation."""
        return sum(total / weight for total, weight in self._validated.values() if weight)

    @property
    def validation_metrics(self) -> dict[str, float]:
        """The loss and every measure of the last validation: "validation_loss", "validation_preference_accuracy" ..."""
        measured = {f"validation_{name}": float(total) / count for name, (total, count) in self._noted.items() if count}
        if self.bytes_per_token:
            measured["validation_bits_per_byte"] = self.validation_loss / math.log(2) / self.bytes_per_token
        return {"validation_loss": self.validation_loss, **measured}

    # ---- what a curriculum may order rows by ----

    def difficulty(self) -> Annotation:
        """The mean negative log-likelihood of each row's supervised tokens under the model as it is now."""
        key = f"difficulty {self.model.source.sha256} {self.network.dtype}"
        return Annotation(name="loss of each row", key=key, columns={"difficulty": "float32"}, compute=self._row_losses)

    @torch.no_grad()
    def _row_losses(self, batch: Any) -> dict[str, list[Any]]:
        from largeforge.method.likelihood import example_of_token

        tokens = getattr(batch, "tokens", batch)
        with self.evaluating():
            example_N = example_of_token(tokens)
            logprob_N = self.head.logprobs(tokens)
        sums = torch.zeros(tokens.num_examples, device=logprob_N.device).index_add_(0, example_N, -logprob_N)
        counts = torch.bincount(example_N, minlength=tokens.num_examples).clamp(min=1)
        return {"difficulty": [row.reshape(1) for row in (sums / counts).cpu().numpy()]}

    # ---- networks that do not learn ----

    def hold_frozen(self, model: LoadedModel | None) -> Any:
        """Keep a second network out of this module's parameters, so that no strategy shards it and no checkpoint holds it; it follows the device."""
        if model is None:
            return None
        network = model.network
        network.requires_grad_(False)
        network.train(False)
        self._frozen.append(network)
        return network

    def let_go(self, network: Any) -> None:
        """Give back a second network that is needed no more."""
        self._frozen = [one for one in self._frozen if one is not network]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout off while the block runs, and leave every module as it was."""
        training = [module for module in self.network.modules() if module.training]
        self.network.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    # ---- what Lightning asks ----

    def configure_optimizers(self) -> Any:
        """The optimizer over what learns; decay on matrices alone; warm-up, then the schedule."""
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in learning if p.ndim >= 2], "weight_decay": self.optimization.weight_decay},
            {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # a fused optimizer unscales inside its step, after our clipping: not under a loss scaler
        optimizer = make_optimizer(self.optimization.optimizer, groups, learning_rate=self.config.learning_rate, fused=not self._scaled)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self.optimization_factor)}

    def optimization_factor(self, step: int) -> float:
        """Learning rate at `step` as a share of its peak, in [0, 1]."""
        return rate_factor(self.optimization, step)

    def configure_model(self) -> None:
        """Spread weights over processes where the strategy asks for it."""
        if self._device_mesh is not None and not is_sharded(self.network):
            shard(self, self.network, self._device_mesh["data_parallel"])
            # what the first process has tried out alone (it computes annotations), all try out again: a sharded forward pass takes every one
            self.head = SupervisedHead(self.network)

    def on_fit_end(self) -> None:
        """Bring weights together for `export` while every process is still there."""
        if is_sharded(self.network):
            self._whole = whole_weights(self.network)

    def on_fit_start(self) -> None:
        self._frozen_to(self.device)

    def follow(self, device: torch.device) -> None:
        """Move this module, and the networks that do not learn, to a device."""
        self.to(device)
        self._frozen_to(device)

    def _frozen_to(self, device: torch.device) -> None:
        for network in self._frozen:
            network.to(device)

    def on_train_start(self) -> None:
        """Under autocast, spare LoRA layers a cast of their input to fp32 that autocast undoes: exact, and a tenth of a step on a CPU."""
        self._set_input_casts(enabled=self.trainer.precision_plugin.precision == "32-true")

    def on_train_end(self) -> None:
        self._set_input_casts(enabled=True)

    def _set_input_casts(self, *, enabled: bool) -> None:
        for module in self.network.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = enabled

    def transfer_batch_to_device(self, batch: Sequence[Any], device: torch.device, dataloader_idx: int) -> list[Any]:
        return [micro.to(device) for micro in batch]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in learning}

    def export(self, folder: Path) -> str:
        """Write network and tokenizer as Hugging Face files, template included; return the artifact's kind."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        for adapter in getattr(self.network, "peft_config", {}).values():
            if isinstance(adapter.target_modules, set):  # whose order is another one in every process, and the file's bytes with it
                adapter.target_modules = sorted(adapter.target_modules)
        self.network.save_pretrained(folder, **({} if self._whole is None else {"state_dict": self._whole}))
        tokenizer.save_pretrained(folder)
        return "adapter" if (folder / "adapter_config.json").is_file() else "model"

    # ---- over micro-batches and ranks ----

    def _totals(self, batches: Sequence[Any]) -> dict[str, float]:
        totals: dict[str, float] = {SUPERVISED: sum(batch.num_supervised for batch in batches)}
        for batch in batches:
            for name, weight in self.weights(batch).items():
                totals[name] = totals.get(name, 0.0) + weight
        return {name: float(total) for name, total in self._over_ranks(totals).items()}

    def _over_ranks(self, values: dict[str, Any]) -> dict[str, Any]:
        """The sum over all ranks of numbers by name; every rank asks for the same names."""
        if self.trainer.world_size == 1 or not values:
            return values
        names = sorted(values)
        mine = torch.tensor([float(values[name]) for name in names], dtype=torch.float64, device=self.device)
        summed: Any = self.trainer.strategy.reduce(mine, reduce_op="sum")
        return dict(zip(names, summed.unbind(), strict=True))

    def _pairs_over_ranks(self, pairs: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        totals = self._over_ranks({name: float(total) for name, (total, _) in pairs.items()})
        counts = self._over_ranks({name: float(count) for name, (_, count) in pairs.items()})
        return {name: (float(totals[name]), float(counts[name])) for name in pairs}

    def measured(self) -> dict[str, float]:
        """Means over all ranks of what `loss` noted since the step, or the validation, began."""
        return {name: total / count for name, (total, count) in self._pairs_over_ranks(self._noted).items() if count}

    def _synchronise(self, *, last: bool) -> None:
        """Exchange gradients between ranks in the last backward pass of a step only."""
        module: Any = self.trainer.strategy.model
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            # what no_sync() would set; Lightning has set it to False for all of a training_step that steps by hand
            module.require_backward_grad_sync = last
        for part in self.children():
            if is_sharded(part):
                part.set_requires_gradient_sync(last)  # type: ignore[operator]


class _NoGradient(Exception):
    """A gradient that is not finite: raised before the optimizer looks at it."""


def _total(terms: Sequence[Term], totals: dict[str, float]) -> Tensor:
    # a term that no rank has a unit of is a sum of nothing: divided by one it stays zero
    parts = [term.sum * (term.coefficient / (totals[term.name] or 1.0)) for term in terms]
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]
