"""One record as a file gives it, and a part of a file that can be read alone. Knows no file format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One record as its file gives it.

    Args:
        value: what stands there; a dict where the file is right.
        origin: file and line, or file and row number, both counted from 1.
    """

    value: Any
    origin: str


@dataclass(frozen=True)
class Slice:
    """A part of one file that can be read alone, in another process too.

    Args:
        file: JSON Lines, Parquet or Arrow.
        start: its first byte in JSON Lines, its first row (from 0) in a table.
        stop: the byte or row behind its last.
        first: the line or row at which it starts, counted from 1.
        num_rows: lines (blank ones too) or rows.
    """

    file: Path
    start: int
    stop: int
    first: int
    num_rows: int
