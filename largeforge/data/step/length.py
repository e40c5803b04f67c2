"""Rows that are too short or too long. Counts; knows nothing about what makes a good length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from largeforge.data.rows import TURNS, Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import LengthConfig
from largeforge.errors import InputError


class Length(Step):
    """Drops rows outside the limits: all text of a row together, every limit that is set."""

    config: LengthConfig

    def ready(self) -> None:
        """Refuse limits that no row can meet, and a tokenizer that cannot be read."""
        config = self.config
        limits = {"chars": (config.min_chars, config.max_chars), "words": (config.min_words, config.max_words), "turns": (config.min_turns, config.max_turns)}
        for unit, (low, high) in limits.items():
            if high is not None and low > high:
                message = f"step.length.min_{unit} = {low} is above step.length.max_{unit} = {high}: no row would be kept."
                raise InputError(message, next_step=f"step.length.min_{unit}={high}")
        if config.max_tokens is not None:
            self._tokenizer  # noqa: B018  read now, so that a wrong path is told before any row

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Give on what fits; drop the rest with the first limit that it breaks."""
        for row in rows:
            broken = self._broken(row)
            yield Dropped(row, *broken) if broken else row

    def _broken(self, row: Row) -> tuple[str, str] | None:
        """The reason and what was measured; None where the row fits. What is cheap is measured first."""
        config = self.config
        texts = list(row.texts())
        chars = sum(map(len, texts))
        if fault := _outside(chars, "character", config.min_chars, config.max_chars):
            return fault
        if (config.min_words or config.max_words is not None) and (
            fault := _outside(sum(len(text.split()) for text in texts), "word", config.min_words, config.max_words)
        ):
            return fault
        if row.kind != "text":
            if fault := _outside(num_turns(row), "turn", config.min_turns, config.max_turns, few="too_few_turns", many="too_many_turns"):
                return fault
            shortest = min(map(len, answers(row)), default=0)
            if shortest < config.min_answer_chars:
                return "answer_too_short", f"an answer of {_counted(shortest, 'character')} (at least {config.min_answer_chars})"
        if config.max_tokens is not None:
            tokens = sum(len(self._tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
            return _outside(tokens, "token", 0, config.max_tokens, many="too_many_tokens")
        return None

    @cached_property
    def _tokenizer(self) -> Any:
        """The tokenizers library's own object: quick to load, and without torch."""
        named = self.config.tokenizer
        if named is None:
            raise InputError("step.length.max_tokens needs to know which tokenizer counts.", next_step="step.length.tokenizer=FOLDER of a model")
        file = Path(named).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise InputError(f"step.length.tokenizer = {named}: there is no tokenizer.json.", next_step="give a tokenizer.json, or the folder of a model")
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(file))
        except Exception as fault:  # the library raises bare Exceptions
            raise InputError(
                f"step.length.tokenizer = {named} is no tokenizer: {fault}", next_step="give a tokenizer.json, or the folder of a model"
            ) from fault


def num_turns(row: Row) -> int:
    """Turns of a row, the system's left out; the two answers of a preference are one way of going on each, and the longer counts."""
    counts = [sum(turn["role"] != "system" for turn in row.content[name]) for name in TURNS[row.kind]]
    return counts[0] + max(counts[1:], default=0) if counts else 0


def answers(row: Row) -> list[str]:
    """What the assistant says, of a preference in both ways."""
    return [turn["content"] for name in TURNS[row.kind] for turn in row.content[name] if turn["role"] == "assistant"]


def _outside(count: int, unit: str, low: int, high: int | None, *, few: str = "too_short", many: str = "too_long") -> tuple[str, str] | None:
    if count < low:
        return few, f"{_counted(count, unit)} (at least {low})"
    if high is not None and count > high:
        return many, f"{_counted(count, unit)} (at most {high})"
    return None


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"
