"""One checked row of chat, one row that cannot be used, and how both name where they stand. Knows no file format and no tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from largeforge.chat import Message
from largeforge.errors import RowError

SHOWN = 20


@dataclass(frozen=True)
class ChatRow:
    """One conversation that can be learnt from: at least one assistant turn, no empty one.

    Args:
        messages: the turns in order.
        origin: where it stands, as a person would look it up: "rows.jsonl:12", "rows.parquet row 12".
    """

    messages: tuple[Message, ...]
    origin: str

    def content_hash(self) -> str:
        """sha256 of what is said, whatever the file or the order of rows."""
        text = json.dumps([[m.role, m.content] for m in self.messages], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dicts(self) -> list[dict[str, str]]:
        """The turns as chat templates take them."""
        return [message.as_dict() for message in self.messages]


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used.

    Args:
        origin: file and line (or row number).
        field: the field at fault, "messages[1].role"; "" for the row as a whole.
        message: what is wrong and what is allowed.
        mend: what to do about it; "" where the message says it.
        needs_length: the data.max_length that would keep it whole, where that is its only fault; 0 is not known.
    """

    origin: str
    field: str
    message: str
    mend: str = ""
    needs_length: int = 0

    def __str__(self) -> str:
        where = f"{self.origin}  {self.field}: " if self.field else f"{self.origin}  "
        return where + self.message


@dataclass
class BadRows:
    """Counts every bad row and keeps the first ones to show."""

    count: int = 0
    shown: list[BadRow] = field(default_factory=list)
    needs_length: int = 0
    only_length: bool = True

    def add(self, bad: BadRow) -> None:
        self.count += 1
        self.needs_length = max(self.needs_length, bad.needs_length)
        self.only_length = self.only_length and bad.needs_length > 0
        if len(self.shown) < SHOWN:
            self.shown.append(bad)

    def error(self, rows_in: int, *, skippable: bool) -> RowError:
        """Every bad row in one answer: the first of them by file, line and field, then how many more.

        Args:
            rows_in: rows read.
            skippable: whether leaving them out would help.
        """
        head = f"{self.count} of {rows_in} row{'s' if rows_in != 1 else ''} cannot be used"
        lines = [head, *(f"  {bad}" for bad in self.shown)]
        if self.count > len(self.shown):
            lines.append(f"  ... and {self.count - len(self.shown)} more")
        mends = list(dict.fromkeys(bad.mend for bad in self.shown if bad.mend))
        if self.needs_length:
            mends.insert(0, f"data.max_length={self.needs_length} keeps every answer whole")
        if not self.only_length and not mends:
            mends.append("mend these rows")
        if skippable:
            mends.append("data.on_bad_row=skip leaves them out and lists them")
        return RowError("\n".join(lines), next_step="; or ".join(mends))
