"""Weights & Biases, on its servers or in files for `wandb sync`; knows nothing about what is measured."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from largeforge.errors import InputError, MissingExtra
from largeforge.tracker.config import WandBConfig

log = logging.getLogger("largeforge.tracker")


class WandB:
    """Sends to W&B, or writes `<run>/wandb`.

    Raises:
        MissingExtra: wandb is not installed.
        InputError: nobody is logged in, and mode is online.
    """

    def __init__(self, config: WandBConfig, *, folder: Path, values: dict[str, Any], name: str | None) -> None:
        self.config = config
        self.folder, self.values, self.name = folder, values, name or folder.name
        if importlib.util.find_spec("wandb") is None:
            raise MissingExtra("wandb", extra="trackers")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb tells its makers of its own faults otherwise
        if config.mode == "online":
            self._look_in()

    def _look_in(self) -> None:
        """Raise InputError where W&B would not take the run: said now, before a model is loaded."""
        import wandb

        offline = "mode=offline below tracker, and wandb sync later"
        try:
            there = wandb.login(prompt=False)
        except (wandb.Error, ValueError) as fault:
            raise InputError(f"Weights & Biases does not let this machine in: {fault}", next_step=f"wandb login; or {offline}") from fault
        if not there:
            raise InputError("Curves go to Weights & Biases, and nobody is logged in there.", next_step=f"wandb login; or {offline}")

    def loggers(self) -> list[Logger]:
        """One logger; a run that goes on is the same run on W&B.

        Raises:
            InputError: W&B does not take the run: no network, no such entity.
        """
        import wandb

        folder = self.folder / "wandb"
        folder.mkdir(exist_ok=True)
        kept = folder / "run_id"
        if not kept.is_file():
            kept.write_text(secrets.token_hex(8), encoding="utf-8")
        config = self.config
        logger = _Logger(
            project=config.project,
            name=self.name,
            save_dir=self.folder.resolve(),  # wandb writes from a process of its own
            id=kept.read_text(encoding="utf-8").strip(),
            entity=config.entity,
            tags=config.tags,
            mode=config.mode,
            config=self.values,
            # online only: files that are written offline are put together by `wandb sync --append`
            resume="allow" if config.mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off"),
        )
        if wandb.run is not None:  # of a run that failed before its first step
            wandb.run.finish(exit_code=1)
        try:
            url = logger.experiment.url
        except wandb.Error as fault:
            raise InputError(f"Weights & Biases does not take the run: {fault}", next_step="mode=offline below tracker, and wandb sync later") from fault
        log.info("curves: %s", url or f"wandb sync {folder}")
        return [logger]


class _Logger(WandbLogger):
    """Lightning's logger leaves its run open, and the next run of the process would write into it."""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        opened: Any = self._experiment
        if opened is not None:
            opened.finish(exit_code=0 if status == "success" else 1)
