"""A CSV table of every logged number; knows nothing about what is measured."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from largeforge.tracker.config import CSVConfig


class CSV:
    """Writes `<run>/csv/metrics.csv`."""

    def __init__(self, config: CSVConfig, *, folder: Path) -> None:
        self.folder = folder

    def logger(self) -> CSVLogger:
        return CSVLogger(save_dir=self.folder, name="csv", version="")
