"""No curves beyond metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from largeforge.tracker.config import SilentConfig


class Silent:
    """Writes nothing."""

    def __init__(self, config: SilentConfig, *, folder: Path) -> None:
        self.folder = folder

    def logger(self) -> None:
        return None
