"""Checkpoints that a run can be taken up from, exactly: what is kept, when, and how it is written.

A checkpoint is an artifact: written to a temporary name, flushed, renamed, with a sha256 per file. With content=full it holds what
learns, the optimizer, the schedule, the step, every random state and what judges the run; with content=weights it is the adapter or
model as it would be exported. Which one a run goes on from is resume.py's. Knows nothing about losses.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning
from lightning.pytorch.strategies import ModelParallelStrategy

from largeforge.artifact import write_artifact, write_atomically
from largeforge.contract import Reference
from largeforge.errors import InputError, ran_out_of_disk
from largeforge.run import Run
from largeforge.trainer.config import TrainerConfig
from largeforge.trainer.copies import Copies
from largeforge.trainer.random_state import of_all_ranks, random_state, seed_random_states, set_random_state
from largeforge.trainer.resume import FACTS, STATE, Facts

log = logging.getLogger("largeforge.trainer")
DUE = 1  # what ranks agree on after each step: nothing (0), a checkpoint, or the number of a signal, which is larger


class Checkpoints(Callback):
    """Writes and prunes checkpoints, and puts random states back where a run resumes.

    Args:
        run: its folder, its signals.
        config: of the trainer.
        facts: what each checkpoint says of itself; the step is filled in.
        sources: what the run was made from: parents of each checkpoint.
        start_step: steps behind the checkpoint that the run goes on from.
        copies: where copies go; None is nowhere.
        changed: whether the recipe is another than that of the checkpoint, and its learning rates are to be followed from here on.
    """

    def __init__(
        self,
        run: Run,
        *,
        config: TrainerConfig,
        facts: Facts,
        sources: Sequence[Reference] = (),
        start_step: int = 0,
        copies: Copies | None = None,
        changed: bool = False,
    ) -> None:
        self.run = run
        self.config = config.checkpoint
        self.rank_by = config.early_stopping
        self.folder = run.folder / "checkpoints"
        self.facts = facts
        self.sources = sources
        self.start_step = start_step
        self.copies = copies
        self.changed = changed
        self.scores: dict[str, float] = {}
        self._pending: list[dict[str, Any]] | None = None  # random states to put back
        self._ready = False
        self._before: dict[str, Any] | None = None  # random state before the step, or the validation, that is under way
        self._validation_due = False
        self._saved = -1
        self._saved_at = time.monotonic()

    # ---- what a checkpoint holds ----

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = dict(state_dict["scores"])

    def on_save_checkpoint(self, trainer: Lightning, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_states"] = of_all_ranks(self._before or random_state(), trainer.world_size)
        if not isinstance(trainer.strategy, ModelParallelStrategy):
            number_by_module(checkpoint, trainer.optimizers, pl_module)
        settle_loops(checkpoint, step=trainer.global_step, validation_due=self._validation_due)

    def on_load_checkpoint(self, trainer: Lightning, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pending = checkpoint["random_states"]

    # ---- start ----

    def setup(self, trainer: Lightning, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = StateFile()

    def on_train_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        self.run.listen()  # Lightning would answer SIGTERM as well, and end a run before its checkpoint is written
        if self.changed:
            follow_config(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        for draft in self.folder.glob(".*"):  # what a process that was killed left half
            shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
        later = [name for name in self._names() if name > _name(self.start_step)]
        for name in later:  # damaged, or of a way that is not gone on
            self.run.progress.say(f"{name} is removed: the run goes on from step {self.start_step}.")
            self._remove(name)

    def on_train_batch_start(self, trainer: Lightning, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore(trainer)
        self._before = random_state()

    def on_validation_start(self, trainer: Lightning, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:  # before the first step: nothing to keep, nothing to put back
            return
        self._restore(trainer)
        self._before = random_state()

    # ---- when ----

    def on_train_batch_end(self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._before = None
        step = trainer.global_step
        wish = self._agreed(trainer, self._wish(step, last=step >= trainer.max_steps))
        validates = bool(trainer.enable_validation and (trainer.should_stop or step % int(trainer.val_check_batch or 1) == 0))
        if wish > DUE and (not validates or step < trainer.max_steps):
            self._interrupt(trainer, wish, validation_due=validates)
        if wish and not validates:
            self.save(trainer)

    def on_validation_batch_end(self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        # a validation may take long, and a stop must not wait for it; several ranks could not agree here
        if self.run.stop_asked and not trainer.sanity_checking and trainer.world_size == 1 and trainer.global_step < trainer.max_steps:
            self._interrupt(trainer, self.run.signal_number, validation_due=True)

    def on_validation_end(self, trainer: Lightning, pl_module: LightningModule) -> None:
        """Save where a checkpoint is due, and rank on the validation of this very step."""
        if trainer.sanity_checking:  # nothing has been learnt that could be kept
            return
        self._before = None
        step = trainer.global_step
        wish = self._agreed(trainer, self._wish(step, last=bool(trainer.should_stop)))
        if wish or self.config.keep_best:
            self._rank(step, pl_module)
        if wish > DUE:
            self._interrupt(trainer, wish, validation_due=False)
        if wish or self.config.keep_best:
            self.save(trainer)

    def on_train_end(self, trainer: Lightning, pl_module: LightningModule) -> None:
        if self.copies is not None and trainer.is_global_zero:
            self.copies.finish()
            if self.copies.missing:
                self.run.outcome = "incomplete"

    def _wish(self, step: int, *, last: bool) -> int:
        if self.run.stop_asked:
            return self.run.signal_number
        config = self.config
        regular = bool(config.every_steps or config.every_minutes)
        due = bool(config.every_steps) and step % config.every_steps == 0
        late = bool(config.every_minutes) and time.monotonic() - self._saved_at >= config.every_minutes * 60
        return DUE if due or late or (last and regular) else 0

    def _agreed(self, trainer: Lightning, wish: int) -> int:
        """What any rank wishes: clocks and signals differ, and a checkpoint is written by all together."""
        if trainer.world_size == 1:
            return wish
        mine = torch.tensor(wish, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max"))

    def _interrupt(self, trainer: Lightning, number: int, *, validation_due: bool) -> None:
        self.run.signal_number = self.run.signal_number or number
        self._validation_due = validation_due
        step = trainer.global_step
        path = self.save(trainer)
        if self.copies is not None and trainer.is_global_zero:
            self.copies.finish()
        goes_on = self.run.command(folder=str(self.run.folder), resume="auto")
        raise self.run.interrupt(
            f"{'Interrupted' if number == signal.SIGINT else 'Ended'} at step {step} of {trainer.max_steps}; a checkpoint was written: {path}",
            next_step=goes_on if self.config.content == "full" else f"a new run from its weights: model={path}",
        )

    # ---- writing ----

    def save(self, trainer: Lightning, *, before_step: bool = False) -> Path:
        """Write the checkpoint of this step, unless this process has, and drop those that are not to be kept. All ranks call it.

        Args:
            trainer: Lightning's.
            before_step: the state is that before a step which was not taken.

        Raises:
            InputError: the disk is full; checkpoints before this one stand.
        """
        step = trainer.global_step
        path = self.folder / _name(step)
        if step == self._saved:
            return path
        if not before_step and not self._validation_due:
            self._before = None
        trouble = ""
        if trainer.is_global_zero:
            trouble = self._write(trainer, path)
        elif self.config.content == "full":
            trainer.save_checkpoint(path / STATE)  # takes part; rank 0 alone writes
        trouble = trainer.strategy.broadcast(trouble) if trainer.world_size > 1 else trouble
        if trouble:
            raise InputError(trouble, next_step=f"free some disk, then: {self.run.command(folder=str(self.run.folder), resume='auto')}")
        self._saved, self._saved_at = step, time.monotonic()
        if trainer.is_global_zero:
            self._prune()
            if self.copies is not None:
                self.copies.send(path)
        return path

    def _write(self, trainer: Lightning, path: Path) -> str:
        """Write the folder; return what to tell of a full disk."""
        if self.copies is not None:
            self.copies.finish()  # what it sends must not be removed below
        step = trainer.global_step

        def fill(draft: Path) -> str:
            if self.config.content == "weights":
                module: Any = trainer.lightning_module
                return str(module.export(draft))
            io: Any = trainer.strategy.checkpoint_io
            trainer.save_checkpoint(draft / STATE)
            io.raise_fault()
            (draft / FACTS).write_text(replace(self.facts, step=step).text(), encoding="utf-8")
            return "checkpoint"

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            write_artifact(path, fill=fill, parents=self.sources, config=self.run.composed.values)
        except Exception as fault:
            if not ran_out_of_disk(fault):
                raise
            kept = self._names()
            stands = f"{kept[-1]} before it stands" if kept else "there is none before it"
            free = shutil.disk_usage(self.folder).free if self.folder.is_dir() else 0
            return f"the checkpoint of step {step} could not be written to {self.folder}: the disk is full ({free / 2**20:,.0f} MiB left); {stands}."
        log.info("checkpoint %s", path)
        return ""

    # ---- keeping ----

    def _rank(self, step: int, pl_module: LightningModule) -> None:
        metrics: dict[str, float] = pl_module.validation_metrics  # type: ignore[assignment]
        self.scores[_name(step)] = metrics[self.rank_by.metric]

    def _prune(self) -> None:
        names = self._names()
        sign = -1.0 if self.rank_by.mode == "max" else 1.0
        ranked = sorted((name for name in names if name in self.scores), key=lambda name: sign * self.scores[name])
        kept = {*ranked[: self.config.keep_best], *names[-self.config.keep_last :]}
        for name in names:
            if name not in kept:
                self._remove(name)
        if self.scores:
            write_atomically(self.folder / "validation.json", json.dumps(self.scores, indent=2) + "\n")

    def _names(self) -> list[str]:
        """Checkpoints here and elsewhere, oldest first."""
        return sorted({path.name for path in self.folder.glob("step=*")} | (self.copies.names if self.copies is not None else set()))

    def _remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir():
            # a folder that a kill leaves half removed must not be found under the name of a whole one
            gone = self.folder / f".{name}.{os.getpid()}"
            os.replace(path, gone)
            shutil.rmtree(gone, ignore_errors=True)
        if self.copies is not None:
            self.copies.remove(name)

    # ---- random states ----

    def _restore(self, trainer: Lightning) -> None:
        if self._ready:
            return
        self._ready = True
        rank, states = trainer.global_rank, self._pending
        if states is not None and len(states) == trainer.world_size:
            set_random_state(states[rank])
        else:  # the start of a run, or the ranks of another
            seed_random_states(self.run.config.seed + rank + 1_000_003 * self.start_step)


class StateFile(TorchCheckpointIO):
    """Writes a state straight into its file: Lightning's own way holds it in memory twice.

    A full disk is kept until `raise_fault`, so that all ranks pass the barrier that comes after the write.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fault: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self._fault = None
        try:
            with open(path, "wb") as stream:
                torch.save(checkpoint, stream)
        except Exception as fault:
            self._fault = fault

    def raise_fault(self) -> None:
        """Raise what the last write met."""
        if self._fault is not None:
            raise self._fault


def settle_loops(checkpoint: dict[str, Any], *, step: int, validation_due: bool) -> None:
    """Have Lightning's counters say "after `step` steps", wherever in its loop the checkpoint is written.

    Args:
        checkpoint: Lightning's, changed in place.
        step: steps taken.
        validation_due: whether the validation after this step is still to come, and a run that goes on begins with it.
    """
    loop = checkpoint["loops"]["fit_loop"]
    done = dict.fromkeys(("ready", "started", "processed", "completed"), step)
    loop["epoch_loop.batch_progress"] |= {"total": dict(done), "current": dict(done), "is_last_batch": False}
    # Lightning takes a validation batch that was started and not processed for a validation to be done again
    validation = loop["epoch_loop.val_loop.batch_progress"]
    half = {"ready": 1, "started": 1, "processed": 0, "completed": 0} if validation_due else dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    validation |= {"total": dict(half), "current": dict.fromkeys(half, 0), "is_last_batch": False}


def number_by_module(checkpoint: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer], module: torch.nn.Module) -> None:
    """Number the parameters in an optimizer's state by their place in the module, as FSDP2 does: then either can load what the other wrote.

    A plain optimizer numbers those that it was given; when it loads it looks at their order alone.
    """
    place = {id(parameter): number for number, parameter in enumerate(module.parameters())}
    for state, optimizer in zip(checkpoint["optimizer_states"], optimizers, strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        number = {old: place[id(parameter)] for old, parameter in enumerate(parameters)}
        state["state"] = {number[old]: values for old, values in state["state"].items()}
        state["param_groups"] = [{**group, "params": [number[old] for old in group["params"]]} for group in state["param_groups"]]


def follow_config(trainer: Lightning, pl_module: LightningModule) -> None:
    """Give optimizers and schedules the numbers of this run's config, where those of a checkpoint were loaded over them."""
    fresh: Any = pl_module.configure_optimizers()
    for live, new in zip(trainer.optimizers[0].param_groups, fresh["optimizer"].param_groups, strict=True):
        live |= {name: value for name, value in new.items() if name not in ("params", "lr")}
    schedule: Any = trainer.lr_scheduler_configs[0].scheduler
    schedule.base_lrs = list(fresh["lr_scheduler"].base_lrs)
    for group, base, factor in zip(trainer.optimizers[0].param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in trainer.optimizers[0].param_groups]


def _name(step: int) -> str:
    return f"step={step:06d}"
