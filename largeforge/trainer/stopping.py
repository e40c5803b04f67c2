"""What ends a run before its last step: a loss gone wrong, or validations that get no better. Sees numbers; writes no checkpoint itself."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning

from largeforge.config.nearest import nearest
from largeforge.errors import InputError
from largeforge.run import Run
from largeforge.trainer.checkpoint import Checkpoints
from largeforge.trainer.config import TrainerConfig

REMEMBERED = 32  # losses that a spike is measured against
NEEDED = 8  # of them before anything counts as a spike
SHOWN_ROWS = 16


class Stopping(Callback):
    """Judges each step and each validation.

    Args:
        run: where it is told.
        config: of the trainer.
        checkpoints: keeps the state before a step that went wrong.
        origins: number of a step, counted from 0 -> where its rows came from.
    """

    def __init__(self, run: Run, *, config: TrainerConfig, checkpoints: Checkpoints, origins: Callable[[int], list[str]]) -> None:
        self.run = run
        self.config = config
        self.checkpoints = checkpoints
        self.origins = origins
        self.recent: deque[float] = deque(maxlen=REMEMBERED)
        self.best = math.inf if config.early_stopping.mode == "min" else -math.inf
        self.without_gain = 0
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "best": self.best, "without_gain": self.without_gain, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent.extend(state_dict["recent"])
        self.best, self.without_gain, self.stopped = state_dict["best"], state_dict["without_gain"], state_dict["stopped"]

    def on_train_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        module: Any = pl_module
        module.accepts = self.accepts
        if self.stopped:
            trainer.should_stop = True

    # ---- each step ----

    def accepts(self, loss: float) -> bool:
        """Whether a step of this loss may be taken."""
        return math.isfinite(loss) and not self._is_spike(loss)

    def on_train_batch_end(self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = float(outputs["loss"])
        if not outputs["taken"]:
            self._end(trainer, pl_module, loss, float(outputs["gradient_norm"]))
        self.recent.append(loss)
        if trainer.global_step == 1 and self._uses_metric(trainer):
            module: Any = pl_module
            self._check_metric(["validation_loss", *(f"validation_{name}" for name in module.measured())])

    def _is_spike(self, loss: float) -> bool:
        factor = self.config.spike_factor
        if not factor or len(self.recent) < NEEDED:
            return False
        median = statistics.median(self.recent)
        return median > 0 and loss > factor * median

    def _end(self, trainer: Lightning, pl_module: LightningModule, loss: float, norm: float) -> None:
        step = trainer.global_step + 1
        if not math.isfinite(loss):
            what = f"the loss is {loss} at step {step}"
        elif self._is_spike(loss):
            median = statistics.median(self.recent)
            what = f"the loss jumps to {loss:.4g} at step {step}, more than trainer.spike_factor={self.config.spike_factor:g} times {median:.4g}, "
            what += f"the median of the last {len(self.recent)} steps"
        else:
            what = f"the gradient's norm is {norm} at step {step}, where the loss is {loss:.4g}"
        lines = [f"{what}; the step was not taken.", self._rows(step), self._kept(trainer, pl_module)]
        rate = pl_module.config.learning_rate / 10  # type: ignore[union-attr, operator]
        again = self.run.command(**{"folder": str(self.run.folder), "resume": "auto", "method.learning_rate": f"{rate:g}"})
        last = "" if self.checkpoints.config.content == "full" else " (from the start: weights alone cannot be resumed)"
        raise InputError(
            "\n".join(line for line in lines if line),
            next_step=f"look at these rows; or go on more slowly{last}: {again} 'trainer.checkpoint.allow_changes=[method.learning_rate]'",
        )

    def _rows(self, step: int) -> str:
        rows = self.origins(step - 1)
        more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        return f"Rows of the step: {', '.join(rows[:SHOWN_ROWS])}{more}." if rows else ""

    def _kept(self, trainer: Lightning, pl_module: LightningModule) -> str:
        """Keep the state before the step, if it is any good."""
        sound = torch.tensor(all(_finite(parameter) for parameter in pl_module.parameters() if parameter.requires_grad), device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            sound = trainer.strategy.reduce(sound.int(), reduce_op="min")
        if not bool(sound):
            names = self.checkpoints._names()
            return f"The weights hold no numbers already; the last checkpoint is {names[-1]}." if names else "The weights hold no numbers already."
        if trainer.global_step == 0:
            return ""
        return f"The state before it was kept: {self.checkpoints.save(trainer, before_step=True)}"

    # ---- each validation ----

    def on_validation_end(self, trainer: Lightning, pl_module: LightningModule) -> None:
        stopping = self.config.early_stopping
        module: Any = pl_module
        metrics: dict[str, float] = module.validation_metrics
        if not self._uses_metric(trainer):
            return
        self._check_metric(list(metrics))
        if trainer.sanity_checking:  # before the first step nothing is better or worse yet
            return
        value = metrics[stopping.metric]
        gain = self.best - value if stopping.mode == "min" else value - self.best
        if gain > stopping.min_delta:
            self.best, self.without_gain = value, 0
        else:
            self.without_gain += 1
        if stopping.patience and self.without_gain >= stopping.patience and trainer.global_step < trainer.max_steps:
            self.stopped = trainer.should_stop = True
            better = "below" if stopping.mode == "min" else "above"
            self.run.progress.say(
                f"Stopping early at step {trainer.global_step}: no {stopping.metric} {better} {self.best:.4f} in {self.without_gain} validations."
            )

    def _uses_metric(self, trainer: Lightning) -> bool:
        return bool(trainer.enable_validation and (self.config.early_stopping.patience or self.config.checkpoint.keep_best))

    def _check_metric(self, known: list[str]) -> None:
        metric = self.config.early_stopping.metric
        if metric not in known:
            raise InputError(
                f"trainer.early_stopping.metric={metric} is measured by no validation of this method; there are: {', '.join(sorted(known))}.",
                next_step=f"trainer.early_stopping.metric={nearest(metric, known) or 'validation_loss'}",
            )


def _finite(parameter: Any) -> bool:
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return bool(torch.isfinite(local.detach()).all())
