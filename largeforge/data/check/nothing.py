"""check=none: nothing is looked at, nothing is found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from largeforge.data.check.base import Finding
from largeforge.data.check.config import NothingConfig
from largeforge.data.rows import Row
from largeforge.errors import CheckFailed
from largeforge.report import Section


class Looking:
    """What a worker fills: nothing."""

    def look(self, rows: Iterable[Row]) -> Looking:
        """Leave the rows alone."""
        return self


class Nothing:
    """The choice of no checks; has every verb of `Standard`."""

    def __init__(self, config: NothingConfig, **live: Any) -> None:
        self.config = config

    def fresh(self) -> Looking:
        return Looking()

    def look(self, rows: Iterable[Row]) -> Nothing:
        return self

    def merge(self, other: Looking) -> None:
        """Nothing was counted."""

    def findings(self) -> list[Finding]:
        return []

    def sections(self, folder: Path) -> list[Section]:
        return []

    def metrics(self) -> dict[str, float]:
        return {}

    def verdict(self, findings: object = None, *, report: Path | None = None) -> CheckFailed | None:
        return None

    def close(self) -> None:
        """Nothing was opened."""
