"""What is shown, logged and judged while training: the bar, metrics.jsonl, the tracker, early stopping, a loss gone wrong.

Sees numbers only; knows nothing about checkpoints.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning

from largeforge.errors import InputError
from largeforge.run import Run
from largeforge.trainer.config import TrainerConfig
from largeforge.trainer.memory import resident_bytes

log = logging.getLogger("largeforge.trainer")


class Watch(Callback):
    """Follows a run step by step."""

    def __init__(self, run: Run, *, num_steps: int, start_step: int, config: TrainerConfig) -> None:
        self.run = run
        self.config = config
        self.bar = run.progress.bar("train", total=num_steps, unit="steps")
        self.bar.advance(start_step)
        self.losses: list[float] = []
        self.num_supervised = 0
        self.seconds = 0.0
        self.validation_losses: list[float] = []
        self._begin = 0.0
        self._device = "cpu"

    def on_train_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        self._device = trainer.strategy.root_device.type

    def on_train_batch_start(self, trainer: Lightning, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begin = time.monotonic()

    def on_train_batch_end(self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: list[Any], batch_idx: int) -> None:
        seconds = time.monotonic() - self._begin
        step, loss = trainer.global_step, float(outputs["loss"])
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} at step {step}.", next_step=f"method.learning_rate={pl_module.config.learning_rate / 10:g}")  # type: ignore[union-attr, operator]
        supervised = sum(micro.num_supervised for micro in batch)
        self.losses.append(loss)
        self.num_supervised += supervised
        self.seconds += seconds
        rate = float(outputs["learning_rate"])
        memory = resident_bytes(self._device)
        self.bar.advance(1, loss=loss, lr=rate, tokens_per_s=supervised / seconds, memory=f"{memory / 2**30:.2f} GiB")
        if step % self.config.log_every_steps == 0 or step == trainer.max_steps:
            metrics = {"loss": loss, "learning_rate": rate, "gradient_norm": float(outputs["gradient_norm"])}
            metrics |= {"supervised_tokens": float(supervised), "tokens_per_s": supervised / seconds, "memory_bytes": float(memory)}
            self._log(trainer, step, metrics)
        if step == trainer.max_steps:
            trainer.should_stop = True  # which makes Lightning validate once more, after the last step

    def on_validation_end(self, trainer: Lightning, pl_module: LightningModule) -> None:
        loss = float(pl_module.validation_loss)  # type: ignore[arg-type]
        self.validation_losses.append(loss)
        self._log(trainer, trainer.global_step, {"validation_loss": loss})
        stopping = self.config.early_stopping
        if stopping.patience and not _improved(self.validation_losses, patience=stopping.patience, min_delta=stopping.min_delta):
            trainer.should_stop = True
            best = min(self.validation_losses)
            self.run.progress.say(f"Stopping early at step {trainer.global_step}: no validation loss below {best:.4f} in {stopping.patience} validations.")

    def summary(self) -> dict[str, float]:
        """Numbers of the whole run, of the steps taken in this process."""
        if not self.losses:
            return {"steps": 0.0}
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        metrics = {
            "steps": float(len(self.losses)),
            "loss_first": self.losses[0],
            "loss": sum(tail) / len(tail),
            "supervised_tokens": float(self.num_supervised),
            "tokens_per_s": self.num_supervised / self.seconds,
        }
        if self.validation_losses:
            metrics["validation_loss"] = self.validation_losses[-1]
        return metrics

    def close(self) -> None:
        """Put the bar away, also when training failed."""
        self.bar.close()

    def _log(self, trainer: Lightning, step: int, metrics: dict[str, float]) -> None:
        self.run.log_metrics(step, metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


def _improved(losses: list[float], *, patience: int, min_delta: float) -> bool:
    """Whether one of the last `patience` losses is lower than all before them by more than `min_delta`."""
    if len(losses) <= patience:
        return True
    return min(losses[-patience:]) < min(losses[:-patience]) - min_delta
