"""Checkpoints that a run can be taken up from, exactly: what is kept, when, and which one is sound.

A checkpoint is an artifact of kind "checkpoint": written to a temporary name, flushed, renamed, with a sha256 per file. It
holds what learns, the optimizer, the schedule, the step and every random state. Knows nothing about losses.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import Trainer as Lightning

from largeforge.artifact import is_artifact, read_artifact, write_artifact, write_atomically
from largeforge.errors import ArtifactError, InputError
from largeforge.run import Run
from largeforge.trainer.config import TrainerConfig

log = logging.getLogger("largeforge.trainer")
STATE = "state.ckpt"


class Checkpoints(Callback):
    """Writes and prunes checkpoints, and puts random states back where a run resumes."""

    def __init__(self, run: Run, *, config: TrainerConfig, seed: int) -> None:
        self.run = run
        self.config = config.checkpoint
        self.folder = run.folder / "checkpoints"
        self.seed = seed
        self._random_state: dict[str, Any] | None = None
        self._seeded = False

    # ---- random states ----

    def on_save_checkpoint(self, trainer: Lightning, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = random_state()

    def on_load_checkpoint(self, trainer: Lightning, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint["random_state"]

    def on_train_batch_start(self, trainer: Lightning, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._seeded:
            return
        self._seeded = True
        if self._random_state is None:
            # a run starts from its seed alone, whatever was drawn before (a benchmark, fresh adapter weights)
            random.seed(self.seed)
            numpy.random.seed(self.seed % 2**32)
            torch.manual_seed(self.seed)
        else:
            set_random_state(self._random_state)

    # ---- when ----

    def on_train_batch_end(self, trainer: Lightning, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        last = step >= trainer.max_steps
        due = self.config.every_steps and step % self.config.every_steps == 0
        if self.run.stop_asked:
            path = self.save(trainer)
            raise self.run.interrupt(
                f"Interrupted at step {step} of {trainer.max_steps}; a checkpoint was written: {path}",
                next_step=self.run.command(folder=str(self.run.folder), resume="auto"),
            )
        if due and not last:
            self.save(trainer)

    def on_validation_end(self, trainer: Lightning, pl_module: LightningModule) -> None:
        """Rank on the validation of this very step."""
        if not self.config.keep_best or trainer.sanity_checking:
            return
        path = self.save(trainer)
        scores = self._scores()
        scores[path.name] = float(pl_module.validation_loss)  # type: ignore[arg-type]
        write_atomically(self.folder / "validation.json", json.dumps(scores, indent=2) + "\n")
        self._prune()

    def save(self, trainer: Lightning) -> Path:
        """Write the checkpoint of this step, unless it stands, and drop those that are not to be kept."""
        path = self.folder / f"step={trainer.global_step:06d}"
        if not is_artifact(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)

            def fill(draft: Path) -> str:
                trainer.save_checkpoint(draft / STATE)
                return "checkpoint"

            write_artifact(path, fill=fill, parents=[], config={})
            log.info("checkpoint %s", path)
        self._prune()
        return path

    def _prune(self) -> None:
        paths = sorted(self.folder.glob("step=*"))
        scores = self._scores()
        best = sorted(scores, key=lambda name: scores[name])[: self.config.keep_best]
        for path in paths[: -self.config.keep_last]:
            if path.name not in best:
                shutil.rmtree(path)

    def _scores(self) -> dict[str, float]:
        path = self.folder / "validation.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def find_checkpoint(run: Run) -> Path | None:
    """The checkpoint this run resumes from: the one `resume` names, else the newest sound one in the run's folder.

    Raises:
        InputError: `resume` names something that is no checkpoint.
        ArtifactError: the one that is named, or every one in the folder, is damaged.
    """
    resume = run.config.resume
    if resume == "never":
        return None
    if resume != "auto":
        path = Path(resume)
        if not is_artifact(path):
            raise InputError(
                f"resume={resume} is no checkpoint.", next_step="resume=auto, or a folder such as outputs/sft/<date>/<time>/checkpoints/step=000100"
            )
        read_artifact(path, kind="checkpoint")
        return path
    paths = sorted((run.folder / "checkpoints").glob("step=*"), reverse=True)
    for path in paths:
        try:
            read_artifact(path, kind="checkpoint")
        except ArtifactError as error:
            run.progress.say(f"{error.message} Taking the checkpoint before it.")
            continue
        return path
    if paths:
        raise ArtifactError(f"every checkpoint in {run.folder / 'checkpoints'} is damaged.", next_step="start again with another folder=...")
    return None


def read_step(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint has behind it."""
    return int(torch.load(checkpoint / STATE, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def random_state() -> dict[str, Any]:
    """Every random state that training draws from, in types that a weights-only load accepts."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every random state back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
