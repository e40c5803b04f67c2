"""What a check of rows is: it counts row by row, adds up what others counted, and tells findings. Knows no particular check.

Rows are read once, shard by shard, perhaps in other processes. A check's state is counters, sketches and fixed-size records (spill.py), never rows;
two states add up, so that the same rows give the same findings however they were cut into shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from largeforge.data.check.spill import Lines
from largeforge.data.rows import Row
from largeforge.data.step.exact_duplicates import prompt_of
from largeforge.report import Section

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_MARKS = str.maketrans(dict.fromkeys(".,;:!?\"'`“”‘’„«»…。，！？；：", " "))


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        check: its name: "leakage".
        severity: "error" (training on this goes wrong), "warning" (a person should look), "note" (worth knowing).
        message: what was found, with its numbers.
        count: rows, or groups and fields, that it was found in.
        examples: where some of those rows came from.
        mend: what to do about it.
    """

    check: str
    severity: Severity
    message: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    mend: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Seen:
    """A sound row, and what several checks derive from it, derived once.

    Args:
        row: passed the schema check.
        number: its place among all that this state has counted, from 0.
    """

    def __init__(self, row: Row, number: int) -> None:
        self.row = row
        self.number = number

    @cached_property
    def text(self) -> str:
        return self.row.text()

    @cached_property
    def prompt(self) -> str:
        """What is asked; empty for a row of text."""
        return "" if self.row.kind == "text" else "\n\n".join(prompt_of(self.row))

    @cached_property
    def answers(self) -> list[str]:
        """The last answer; of a pair the chosen and the rejected one; of a text its all."""
        content = self.row.content
        if self.row.kind == "preference":
            return ["\n\n".join(turn["content"] for turn in content[name]) for name in ("chosen", "rejected")]
        if self.row.kind == "messages":
            return [next((turn["content"] for turn in reversed(content["messages"]) if turn["role"] == "assistant"), "")]
        return [content["text"]]

    @cached_property
    def plain_text(self) -> str:
        return plain(self.text)

    @cached_property
    def plain_prompt(self) -> str:
        return plain(self.prompt)


def plain(text: str) -> str:
    """What is left of a text without case, punctuation of sentences and white space: two texts that a reader would call the same are equal."""
    return " ".join(text.casefold().translate(_MARKS).split())


class Check:
    """One check. `add` counts a row, `merge` what another of its kind counted over the rows that follow, `findings` tells.

    Args:
        config: its own typed config; None for a check that has nothing to set.
        examples: rows to name with a finding.
    """

    def __init__(self, config: Any = None, *, examples: int = 5) -> None:
        self.config = config
        self.examples = examples

    @property
    def name(self) -> str:
        """The module's name, as users choose it: "leakage"."""
        return type(self).__module__.rpartition(".")[2]

    def add(self, seen: Seen) -> None:
        """Count one row."""
        raise NotImplementedError

    def close(self) -> None:
        """Every row of this state was added: work off what was kept to be done together. May be called again after more rows."""

    def merge(self, other: Any, first: int) -> None:
        """Add what another counted; its row 0 is our row `first`."""
        raise NotImplementedError

    def spill(self, folder: Path) -> None:
        """From now on keep records in files here rather than in memory."""

    def findings(self, origins: Lines) -> list[Finding]:
        """Tell; `origins` says where each row came from, by its number."""
        raise NotImplementedError

    def sections(self, folder: Path) -> list[Section]:
        """Tables and pictures (written into the folder) for the report; asked after `findings`."""
        return []

    def metrics(self) -> dict[str, float]:
        """Numbers for result.json; asked after `findings`."""
        return {}

    def found(self, severity: Severity, message: str, *, count: int, examples: Iterable[str] = (), mend: str = "") -> Finding:
        """A finding of this check."""
        return Finding(self.name, severity, message, count, list(examples)[: self.examples], mend)


def rows_said(count: int) -> str:
    """A count of rows in words: "1 row", "1,204 rows"."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def share_said(part: int, whole: int) -> str:
    """A share in words that never rounds something down to nothing: "4.0 %", "below 0.1 %"."""
    share = 100 * part / max(1, whole)
    return "below 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def pairs_said(pairs: Sequence[tuple[str, str]], between: str) -> list[str]:
    """Two origins each, as one example: "a.jsonl:3 repeats a.jsonl:1"."""
    return [f"{left} {between} {right}" for left, right in pairs]
