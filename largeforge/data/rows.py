"""One checked row, of chat, of preferences or of text; one row that cannot be used; and how each names where it stands.

Knows no file format and no tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from largeforge.chat import Message
from largeforge.errors import RowError

SHOWN = 20
Kind = Literal["messages", "preference", "text"]
TURNS = {"messages": ("messages",), "preference": ("prompt", "chosen", "rejected"), "text": ()}
"""Which fields of each kind hold lists of turns."""


@dataclass(frozen=True)
class Row:
    """One row as pipelines, checks and generators see it.

    Args:
        content: JSON values. messages: {"messages": [turn, ...]}; preference: {"prompt": [turn, ...], "chosen": [turn, ...],
            "rejected": [turn, ...]}; text: {"text": "..."}; a turn is {"role": ..., "content": ...}. Further fields of the row (label,
            category ...) stand beside them under their own names.
        origin: where it came from, as a person would look it up: "rows.jsonl:12", "template greeting, draw 3".
        lineage: JSON values that stay outside the row's id: "changed" (names of steps), "template", "teacher", "parameters", "time" ...
        split: "train", "validation" or "test".
    """

    content: dict[str, Any]
    origin: str
    lineage: dict[str, Any] = field(default_factory=dict)
    split: str = "train"

    @property
    def kind(self) -> Kind:
        return kind_of(self.content)

    @cached_property
    def id(self) -> str:
        """32 hex digits of the hash of what the row says: the same on every machine."""
        return hashlib.sha256(canonical(self.content)).hexdigest()[:32]

    def texts(self) -> Iterator[str]:
        """Every piece of text, in reading order."""
        for name in TURNS[self.kind]:
            for turn in self.content[name]:
                yield turn["content"]
        if self.kind == "text":
            yield self.content["text"]

    def text(self) -> str:
        """Its text but what the system says, pieces joined by an empty line: what likeness and language are judged by.

        Rows that share a long system message are no more alike for it.
        """
        turns = [turn for name in TURNS[self.kind] for turn in self.content[name] if turn["role"] != "system"]
        return "\n\n".join(turn["content"] for turn in turns) if self.kind != "text" else str(self.content["text"])

    def rewritten(self, function: Callable[[str], str], *, by: str) -> Row:
        """Return the row with every piece of text rewritten; itself where nothing changes."""
        content = dict(self.content)
        for name in TURNS[self.kind]:
            content[name] = [{**turn, "content": function(turn["content"])} for turn in content[name]]
        if self.kind == "text":
            content["text"] = function(content["text"])
        return self if content == self.content else self.changed(content, by=by)

    def changed(self, content: dict[str, Any], *, by: str) -> Row:
        """Return a row that says something else, and whose lineage says which step did it."""
        return Row(content, self.origin, {**self.lineage, "changed": [*self.lineage.get("changed", []), by]}, self.split)

    def with_lineage(self, **facts: Any) -> Row:
        """Return the same row, knowing more about where it came from."""
        return replace(self, lineage={**self.lineage, **facts})


@dataclass(frozen=True)
class Dropped:
    """A row that a step leaves out.

    Args:
        reason: a short name that is counted: "too_short", "duplicate_of".
        detail: what was measured or met: "3 characters", the origin of the row it repeats. Never the row's own text.
    """

    row: Row
    reason: str
    detail: str = ""


def kind_of(content: dict[str, Any]) -> Kind:
    """What kind of row a content is: a pair where there are two answers, whatever stands beside them."""
    if "chosen" in content and "rejected" in content:
        return "preference"
    return "messages" if "messages" in content else "text"


def canonical(content: dict[str, Any]) -> bytes:
    """The one way a row is written: JSON, keys sorted, UTF-8, no spaces, no newline at its end."""
    import orjson

    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True)
class ChatRow:
    """One conversation that can be learnt from: at least one assistant turn, no empty one.

    Args:
        messages: the turns in order.
        origin: where it stands, as a person would look it up: "rows.jsonl:12", "rows.parquet row 12".
        num_prompt: how many of the turns are only asked, whoever speaks in them; 0 learns from every turn of the assistant's.
        desirable: whether the answer is one to learn; of a method that is told.
    """

    messages: tuple[Message, ...]
    origin: str
    num_prompt: int = 0
    desirable: bool = True

    def content_hash(self) -> str:
        """sha256 of what is said, whatever the file or the order of rows; of the prompt alone where there may be several answers to it."""
        said = self.messages[: self.num_prompt] if self.num_prompt else self.messages
        text = json.dumps([[m.role, m.content] for m in said], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def parts(self) -> tuple[ChatRow, ...]:
        """The conversations that become tokens."""
        return (self,)

    @property
    def num_asked(self) -> int:
        """Turns of the assistant's that are part of the prompt."""
        return sum(message.role == "assistant" for message in self.messages[: self.num_prompt])

    def as_dicts(self) -> list[dict[str, str]]:
        """The turns as chat templates take them."""
        return [message.as_dict() for message in self.messages]


@dataclass(frozen=True)
class PairRow:
    """Two answers to one prompt, of which one is preferred."""

    chosen: ChatRow
    rejected: ChatRow
    origin: str

    def content_hash(self) -> str:
        """sha256 of the prompt: pairs of one prompt stand on the same side of a split."""
        return self.chosen.content_hash()

    def parts(self) -> tuple[ChatRow, ...]:
        """The conversations that become tokens."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class TextRow:
    """A text that is learnt from beginning to end."""

    text: str
    origin: str

    def content_hash(self) -> str:
        """sha256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


LearntRow = ChatRow | PairRow | TextRow


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

    def __post_init__(self) -> None:
        for name in ("origin", "field", "message"):  # a fault can be told even where it quotes what UTF-8 cannot hold
            said = getattr(self, name)
            if not said.isascii():
                object.__setattr__(self, name, said.encode("utf-8", "backslashreplace").decode())

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
