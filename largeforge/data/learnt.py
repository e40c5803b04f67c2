"""What a method learns from a row: turns of chat, a pair of answers, an answer that is good or bad, a text. Knows no file and no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from largeforge.batch import Learns
from largeforge.chat import Example, Message, Role
from largeforge.data.rows import BadRow, ChatRow, Kind, LearntRow, PairRow, Row, TextRow

KINDS: dict[Learns, tuple[Kind, ...]] = {"chat": ("messages",), "pairs": ("preference",), "labelled": ("preference", "messages"), "text": ("text",)}
"""Kinds of row that can be learnt from in each way."""
LABELS = {1: True, 0: False, "true": True, "false": False, "good": True, "bad": False}


def learnt_rows(row: Row, learns: Learns) -> Iterator[LearntRow | BadRow]:
    """Yield what is learnt from a row of a kind that `KINDS` allows: one thing, of a pair whose answers are learnt apart two."""
    content = row.content
    if row.kind == "text":
        yield TextRow(content["text"], row.origin)
    elif row.kind == "preference":
        pair = _pair(row)
        if learns == "pairs":
            yield pair
        else:
            yield from pair.parts()
    elif learns == "labelled":
        yield _labelled(row)
    else:
        yield ChatRow(_turns(content["messages"]), row.origin)


def example_of(row: LearntRow) -> Example | None:
    """The row as a question: every turn before the last answer, and that answer; None for a text and for an answer that is none to give."""
    if isinstance(row, TextRow):
        return None
    chat = row.chosen if isinstance(row, PairRow) else row
    if not chat.desirable:
        return None
    last = max(index for index, message in enumerate(chat.messages) if message.role == "assistant")
    return Example(prompt=chat.messages[:last], answer=chat.messages[last].content, note=row.origin)


def _pair(row: Row) -> PairRow:
    prompt, chosen, rejected = (_turns(row.content[name]) for name in ("prompt", "chosen", "rejected"))
    good = ChatRow(prompt + chosen, row.origin, num_prompt=len(prompt))
    return PairRow(good, ChatRow(prompt + rejected, row.origin, num_prompt=len(prompt), desirable=False), row.origin)


def _labelled(row: Row) -> ChatRow | BadRow:
    label = row.content.get("label")
    key = label.lower() if isinstance(label, str) else label
    if not isinstance(key, (int, str)) or key not in LABELS:
        said = "missing" if label is None else f"{label!r} says neither"
        return BadRow(row.origin, "label", f"{said}; true (an answer to learn) or false is needed")
    turns = _turns(row.content["messages"])
    last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=-1)
    if last < 0 or last == len(turns) - 1:
        return BadRow(row.origin, "messages", "no answer follows a question, so there is nothing to judge")
    return ChatRow(turns, row.origin, num_prompt=last + 1, desirable=LABELS[key])


def _turns(turns: list[Any]) -> tuple[Message, ...]:
    return tuple(Message(cast(Role, turn["role"]), turn["content"]) for turn in turns)
