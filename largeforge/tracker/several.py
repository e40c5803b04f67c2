"""Several trackers at once: every number goes to each; knows nothing about what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from largeforge.build import build
from largeforge.errors import InputError
from largeforge.tracker.config import SeveralConfig, TrackerConfig


class Several:
    """What tracker=[tensorboard,csv] builds. Raises InputError where it holds none."""

    def __init__(self, config: SeveralConfig, *, folder: Path, values: dict[str, Any], name: str | None) -> None:
        parts = [part for field in type(config).model_fields if isinstance(part := getattr(config, field), TrackerConfig)]
        if not parts:
            raise InputError("tracker=several names no trackers.", next_step="tracker='[tensorboard,csv]'")
        self.trackers: list[Any] = [build(part, folder=folder, values=values, name=name) for part in parts]

    def loggers(self) -> list[Logger]:
        return [logger for tracker in self.trackers for logger in tracker.loggers()]
