"""What is shown and logged while training: the bar, metrics.jsonl, the tracker, the numbers of the end.

Sees numbers only; knows nothing about checkpoints, and judges nothing.
"""

from __future__ import annotations

import logging
import time
import zlib
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning

from largeforge.run import Run
from largeforge.trainer.config import TrainerConfig
from largeforge.trainer.memory import resident_bytes

log = logging.getLogger("largeforge.trainer")


class Watch(Callback):
    """Follows a run step by step. Its numbers are in each checkpoint, so that those of the end are of the whole run."""

    def __init__(self, run: Run, *, num_steps: int, start_step: int, config: TrainerConfig) -> None:
        self.run = run
        self.config = config
        self.bar = run.progress.bar("train", total=num_steps, unit="steps")
        self.bar.advance(start_step)
        self.losses: list[float] = []
        self.num_supervised = 0
        self.seconds = 0.0
        self.validated: dict[str, float] = {}
        self.before: dict[str, float] = {}
        self._begin = 0.0
        self._device = "cpu"

    def state_dict(self) -> dict[str, Any]:
        losses = torch.tensor(self.losses, dtype=torch.float64)
        validated = {"validated": dict(self.validated), "before": dict(self.before)}
        return {"losses": losses, "num_supervised": self.num_supervised, "seconds": self.seconds, **validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = state_dict["losses"].tolist()
        self.num_supervised, self.seconds = state_dict["num_supervised"], state_dict["seconds"]
        self.validated, self.before = dict(state_dict["validated"]), dict(state_dict["before"])

    def on_train_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        self._device = trainer.strategy.root_device.type

    def on_train_batch_start(self, trainer: Lightning, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begin = time.monotonic()

    def on_train_batch_end(self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: list[Any], batch_idx: int) -> None:
        if not outputs["taken"]:
            return
        seconds = time.monotonic() - self._begin
        step, loss = trainer.global_step, float(outputs["loss"])
        supervised = int(outputs["supervised_tokens"])  # over all ranks
        self.losses.append(loss)
        self.num_supervised += supervised
        self.seconds += seconds
        rate = float(outputs["learning_rate"])
        memory = resident_bytes(self._device)
        self.bar.advance(1, loss=loss, lr=rate, tokens_per_s=supervised / seconds, memory=f"{memory / 2**30:.2f} GiB")
        if step % self.config.log_every_steps == 0 or step == trainer.max_steps:
            module: Any = pl_module
            metrics = {"loss": loss, "learning_rate": rate, "gradient_norm": float(outputs["gradient_norm"])}
            metrics |= {"supervised_tokens": float(supervised), "tokens_per_s": supervised / seconds, "memory_bytes": float(memory)}
            metrics |= module.measured()  # all ranks ask what was measured, at the same steps
            self._log(trainer, step, metrics, checksum=checksum(batch))
        if step == trainer.max_steps:
            trainer.should_stop = True  # which makes Lightning validate once more, after the last step

    def on_validation_end(self, trainer: Lightning, pl_module: LightningModule) -> None:
        module: Any = pl_module
        self.validated = dict(module.validation_metrics)
        if trainer.sanity_checking:
            self.before = {f"{name}_before": value for name, value in self.validated.items()}
        self._log(trainer, trainer.global_step, self.validated)

    def summary(self) -> dict[str, float]:
        """Numbers of the whole run, also of its steps before it was taken up again."""
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
        return metrics | self.before | self.validated

    def close(self) -> None:
        """Put the bar away, also when training failed."""
        self.bar.close()

    def _log(self, trainer: Lightning, step: int, metrics: dict[str, float], *, checksum: int | None = None) -> None:
        if not trainer.is_global_zero:
            return
        self.run.log_metrics(step, metrics if checksum is None else {**metrics, "batch_checksum": checksum})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


def checksum(batch: list[Any]) -> int:
    """CRC-32 of the token ids and masks of this process's micro-batches: the same number is the same batch, for all that a log needs."""
    found = 0
    for micro in batch:
        tokens = getattr(micro, "tokens", micro)
        for tensor in (tokens.input_ids_BT, tokens.position_ids_BT, tokens.supervised_BT):
            found = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), found)
    return found
