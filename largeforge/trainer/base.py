"""Runs a method over data on one device or on several processes: steps, validation, checkpoints, resume, what is shown and logged.

Knows nothing about losses or rows; Lightning runs the loop, our callbacks decide what is kept and told.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer as Lightning

from largeforge.batch import StepWindow
from largeforge.contract import DataModule, Method, Optimization, Storage, Tracker
from largeforge.errors import InputError
from largeforge.rank import Rank
from largeforge.run import Run
from largeforge.trainer.checkpoint import Checkpoints
from largeforge.trainer.config import TrainerConfig
from largeforge.trainer.copies import open_copies
from largeforge.trainer.group import environment, first_before_others, strategy
from largeforge.trainer.memory import peak_bytes, reset_peak
from largeforge.trainer.resume import STATE, Facts, check_recipe, find_checkpoint
from largeforge.trainer.stopping import Stopping
from largeforge.trainer.watch import Watch

# mixed: weights that learn stay fp32, products are taken in the lower precision
LIGHTNING_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

log = logging.getLogger("largeforge.trainer")


class Trainer:
    """Trains on devices of one kind, one process each.

    Args:
        config: steps, batch, precision, schedule, checkpoints.
        tracker: where curves go.
        run: the run's folder, progress and signals.
        storage: how copies of checkpoints are sent and found.
    """

    def __init__(self, config: TrainerConfig, *, tracker: Tracker | None = None, run: Run | None = None, storage: Storage | None = None) -> None:
        self.config = config
        self.tracker = tracker
        self.run = run
        self.storage = storage
        self.group = run.rank if run is not None else Rank(world_size=config.devices * config.nodes, local_size=config.devices)
        self.rank, self.world_size = self.group.number, self.group.world_size
        self.watchers: list[Any] = []
        """Callbacks of Lightning's that look on besides: a proof's, a bench's."""
        self.device = self.find_device()
        self.precision = self.find_precision()
        self.check_device()
        if config.threads:
            torch.set_num_threads(config.threads)

    # ---- what a choice decides ----

    def find_device(self) -> str:
        """Return "cpu" or "cuda"."""
        raise NotImplementedError

    def find_precision(self) -> str:
        """Return "fp32", "bf16" or "fp16": what `precision=auto` stands for on the device."""
        if self.config.precision != "auto":
            return self.config.precision
        if self.device == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"

    def check_device(self) -> None:
        """Raise InputError where the machine lacks what was asked for."""
        if self.precision == "fp16" and self.device == "cpu":
            raise InputError("trainer.precision=fp16 trains on a GPU, and there is none in use here.", next_step="trainer.precision=auto, bf16 or fp32")
        if self.run is None or self.device != "cuda":
            return
        there = torch.cuda.device_count()
        if self.config.devices > there:
            raise InputError(f"trainer.devices={self.config.devices}, but torch sees {there} here.", next_step=f"trainer.devices={there}")

    # ---- sizes known before training ----

    def num_steps(self, num_rows: int) -> int:
        """Optimizer steps of the whole run over `num_rows` rows."""
        per_epoch = math.ceil(num_rows / self.config.batch_size)
        return self.config.max_steps or max(1, math.ceil(self.config.epochs * per_epoch))

    def window(self, num_rows: int, *, seed: int, start_step: int = 0) -> StepWindow:
        """Return which steps a run over `num_rows` rows takes."""
        return StepWindow(
            batch_size=self.config.batch_size,
            micro_batch_size=self.config.micro_batch_size,
            num_steps=self.num_steps(num_rows),
            start_step=start_step,
            seed=seed,
            rank=self.rank,
            world_size=self.world_size,
        )

    def optimization(self, num_steps: int) -> Optimization:
        """Return how the method shall step."""
        config = self.config
        return Optimization(
            num_steps=num_steps,
            schedule=config.schedule,
            warmup_steps=math.ceil(config.warmup_ratio * num_steps),
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            optimizer=config.optimizer,
            decay_steps=math.ceil(config.decay_ratio * num_steps),
        )

    # ---- training ----

    def leader_first(self) -> AbstractContextManager[None]:
        """Let the first process of each machine run the block before the others do: what it leaves in the cache, they find there."""
        return first_before_others(self.group)

    @contextmanager
    def computing(self, method: Any) -> Iterator[None]:
        """Let a method compute before training as it will while it trains: on the same device, in the same precision, without a gradient."""
        device = torch.device(self.device, self.group.local) if self.device == "cuda" else torch.device(self.device)
        method.follow(device)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.no_grad(), torch.autocast(self.device, dtype=dtype, enabled=dtype is not None):
            yield

    def fit(self, method: Method, data: DataModule) -> dict[str, float]:
        """Train from the start, or from the newest sound checkpoint where the run resumes.

        Returns:
            train_seconds, steps, loss (mean over the last tenth of the steps), loss_first, validation_loss (where there
            are validation rows), tokens_per_s (supervised tokens), peak_memory_bytes.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
            InputError: the run cannot go on from that checkpoint; a loss went wrong; the disk is full.
        """
        assert self.run is not None and self.tracker is not None
        run, config = self.run, self.config
        seed = run.config.seed
        checkpoint = find_checkpoint(run, storage=self.storage)
        start_step = checkpoint.facts.step if checkpoint else 0
        window = self.window(data.num_rows, seed=seed, start_step=start_step)
        method.optimization = self.optimization(window.num_steps)
        facts = self._facts(method, data, window)
        changes = check_recipe(run, checkpoint, facts, config=config) if checkpoint else []
        copies = open_copies(run, storage=self.storage, folder=config.checkpoint.folder) if window.rank == 0 else None
        if config.gradient_checkpointing:
            method.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        validation = data.validation_batches(config.micro_batch_size, rank=self.rank, world_size=self.world_size)
        watch = Watch(run, num_steps=window.num_steps, start_step=start_step, config=config)
        loader = StepLoader(data.train_steps(window), num_steps=window.num_steps)
        sources = (method.model.source, data.source)
        checkpoints = Checkpoints(run, config=config, facts=facts, sources=sources, start_step=start_step, copies=copies, changed=bool(changes))
        stopping = Stopping(run, config=config, checkpoints=checkpoints, origins=lambda step: data.origins(window, step))
        if checkpoint and window.rank == 0:
            run.rewind(start_step)
        # in this order: a step is shown, then judged, then kept
        lightning = self._lightning(method, window, callbacks=[watch, stopping, checkpoints, *self.watchers])
        reset_peak(self.device)
        begin = time.monotonic()
        try:
            with warnings.catch_warnings():
                # advice on number of workers, on a missing validation loader: both are the user's own settings here
                warnings.simplefilter("ignore", PossibleUserWarning)
                # Lightning 2.6.6 asks torch 2.13 in a way that torch wants changed
                warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
                module: Any = method  # a LightningModule; the contract says only what stories need
                lightning.fit(module, loader, validation, ckpt_path=str(checkpoint.path / STATE) if checkpoint else None, weights_only=True)
        finally:
            watch.close()
        metrics = watch.summary()
        metrics["train_seconds"] = time.monotonic() - begin
        metrics["peak_memory_bytes"] = float(peak_bytes(self.device))
        return metrics

    def _facts(self, method: Method, data: DataModule, window: StepWindow) -> Facts:
        """What every checkpoint of this run says of itself."""
        return Facts(
            step=0,
            num_steps=window.num_steps,
            warmup_steps=method.optimization.warmup_steps,
            world_size=window.world_size,
            device=self.device,
            precision=self.precision,
            sources={"model": method.model.source.sha256, "data": data.source.sha256},
        )

    def _lightning(self, method: Method, window: StepWindow, *, callbacks: list[Any]) -> Lightning:
        assert self.run is not None and self.tracker is not None
        every = self.config.validate_every_steps or window.num_steps
        quiet("lightning.pytorch", "lightning.fabric")
        return Lightning(
            accelerator=self.device,
            devices=self.config.devices,
            num_nodes=self.config.nodes,
            **self._sharing(method),
            precision=LIGHTNING_PRECISION[self.precision],
            # one Lightning epoch holds all steps: epochs are ours, a function of (seed, epoch), so that resume is exact
            max_steps=window.num_steps,
            max_epochs=1,
            min_epochs=0,
            val_check_interval=every,
            check_val_every_n_epoch=None,
            # what Lightning calls a sanity check is the validation before the first step, of all rows
            num_sanity_val_steps=-1 if self.config.validate_first and window.start_step == 0 else 0,
            logger=(self.run.leads and self.tracker.loggers()) or False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=os.fspath(self.run.folder),
        )

    def _sharing(self, method: Method) -> dict[str, Any]:
        """How Lightning brings processes together; a process that is alone needs nothing."""
        if self.world_size == 1:
            return {}
        return {"strategy": strategy(self.config.strategy, self.group, skips=method.skips_parameters), "plugins": [environment()]}


class StepLoader:
    """A loader whose length counts all steps of the run, so that a resumed loop knows where the end is.

    The steps themselves start where the run resumes; the empty state tells Lightning that resuming is taken care of.
    """

    def __init__(self, steps: Any, *, num_steps: int) -> None:
        self.steps = steps
        self.num_steps = num_steps

    def __iter__(self) -> Any:
        return iter(self.steps)

    def __len__(self) -> int:
        return self.num_steps

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the order is a function of seed, epoch and step."""


def quiet(*names: str) -> None:
    """Keep libraries' own greetings out of what the user reads; warnings stay."""
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
