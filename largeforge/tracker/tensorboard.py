"""TensorBoard event files; knows nothing about what is measured."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from largeforge.tracker.config import TensorBoardConfig


class TensorBoard:
    """Writes `<run>/tensorboard`."""

    def __init__(self, config: TensorBoardConfig, *, folder: Path) -> None:
        self.folder = folder

    def logger(self) -> TensorBoardLogger:
        return TensorBoardLogger(save_dir=self.folder, name="tensorboard", version="")
