"""No curves beyond metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from largeforge.tracker.config import SilentConfig


class Silent:
    """Writes nothing."""

    def __init__(self, config: SilentConfig, *, folder: Path, values: dict[str, Any], name: str | None) -> None:
        pass

    def loggers(self) -> list[Logger]:
        return []
