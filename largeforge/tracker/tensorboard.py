"""TensorBoard event files; knows nothing about what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from largeforge.tracker.config import TensorBoardConfig


class TensorBoard:
    """Writes `<run>/tensorboard`."""

    def __init__(self, config: TensorBoardConfig, *, folder: Path, values: dict[str, Any], name: str | None) -> None:
        self.folder = folder

    def loggers(self) -> list[Logger]:
        return [TensorBoardLogger(save_dir=self.folder, name="tensorboard", version="")]
