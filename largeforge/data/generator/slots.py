"""The typed slots of a template set: what may stand in `{{ name }}`, and how a value is drawn. Knows nothing about rows.

Every slot draws from a `random.Random`, and knows how many values it has; one with few can list them all.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from largeforge.config.typed import Float, Int, PositiveFloat, PositiveInt, Typed

Scalar = str | bool | int | float


class Slot(Typed):
    """What every slot can do."""

    def draw(self, rng: Random) -> Any:
        """One value."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """How many values there are."""
        raise NotImplementedError

    def every(self) -> Sequence[Any]:
        """All values, each once."""
        raise NotImplementedError


class Choice(Slot):
    """One of some values; a mapping gives each its weight."""

    type: Literal["choice"]
    values: dict[str, PositiveFloat] | list[Scalar] = Field(min_length=1)

    @cached_property
    def _options(self) -> list[Scalar]:
        return list(self.values)

    @cached_property
    def _weights(self) -> list[float] | None:
        return list(self.values.values()) if isinstance(self.values, dict) else None

    def draw(self, rng: Random) -> Any:
        return rng.choices(self._options, self._weights)[0] if self._weights else rng.choice(self._options)

    @property
    def count(self) -> int:
        return len(self._options)

    def every(self) -> Sequence[Any]:
        return self._options


class Text(Slot):
    """One of some texts, all as likely."""

    type: Literal["text"]
    values: list[str] = Field(min_length=1)

    def draw(self, rng: Random) -> Any:
        return rng.choice(self.values)

    @property
    def count(self) -> int:
        return len(self.values)

    def every(self) -> Sequence[Any]:
        return self.values


class Whole(Slot):
    """A whole number from min to max, both included."""

    type: Literal["int"]
    min: Int
    max: Int
    step: PositiveInt = 1

    @model_validator(mode="after")
    def ordered(self) -> Whole:
        if self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}")
        return self

    def every(self) -> range:
        return range(self.min, self.max + 1, self.step)

    def draw(self, rng: Random) -> Any:
        return rng.choice(self.every())

    @property
    def count(self) -> int:
        return len(self.every())


class Real(Slot):
    """A number from min to max with so many decimals."""

    type: Literal["float"]
    min: Float
    max: Float
    decimals: Annotated[Int, Field(ge=0, le=9)] = 2

    @model_validator(mode="after")
    def ordered(self) -> Real:
        if self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}")
        return self

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        scale = 10**self.decimals
        return round(self.min * scale), round(self.max * scale)

    def _value(self, steps: int) -> float:
        return float(round(steps / 10**self.decimals, self.decimals))

    def draw(self, rng: Random) -> Any:
        return self._value(rng.randint(*self._bounds))

    @property
    def count(self) -> int:
        return self._bounds[1] - self._bounds[0] + 1

    def every(self) -> Sequence[Any]:
        return [self._value(steps) for steps in range(self._bounds[0], self._bounds[1] + 1)]


class Date(Slot):
    """A day from min to max, both included; `format` is of strftime, without it 2026-11-22."""

    type: Literal["date"]
    min: datetime.date
    max: datetime.date
    format: str | None = None

    @model_validator(mode="after")
    def ordered(self) -> Date:
        if self.max < self.min:
            raise ValueError(f"max={self.max} is before min={self.min}")
        return self

    def _value(self, days: int) -> Any:
        day = self.min + datetime.timedelta(days=days)
        return day if self.format is None else day.strftime(self.format)

    def draw(self, rng: Random) -> Any:
        return self._value(rng.randrange(self.count))

    @property
    def count(self) -> int:
        return (self.max - self.min).days + 1

    def every(self) -> Sequence[Any]:
        return [self._value(days) for days in range(self.count)]


class Nested(Slot):
    """A template of its own, of other slots."""

    type: Literal["template"]
    template: str


class File(Slot):
    """One line of a text file, or one object of a .jsonl file, whose fields are `{{ name.field }}`; beside the set, or below."""

    type: Literal["file"]
    path: str
    _values: list[Any] = PrivateAttr(default_factory=list)

    @field_validator("path")
    @classmethod
    def inside(cls, path: str) -> str:
        """A set from a stranger reads no file of yours: only what lies beside it."""
        if Path(path).is_absolute() or ".." in Path(path).parts or path.startswith("~"):
            raise ValueError("a path beside the template set, without .. in it")
        return path

    def read(self, folder: Path) -> str:
        """Read the values; return what is wrong with the file, "" where nothing is."""
        place = folder / self.path
        if not place.is_file():
            return f"there is no file {place}"
        if folder.resolve() not in place.resolve().parents:
            return f"{place} leads out of {folder}"
        try:
            lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (UnicodeDecodeError, OSError) as fault:
            return f"{place} cannot be read: {fault}"
        for number, line in enumerate(lines, 1):
            try:
                self._values.append(json.loads(line) if place.suffix == ".jsonl" else line)
            except ValueError as fault:
                return f"{place}: object {number} is no JSON: {fault}"
        return "" if self._values else f"{place} is empty"

    def draw(self, rng: Random) -> Any:
        return rng.choice(self._values)

    @property
    def count(self) -> int:
        return len(self._values)

    def every(self) -> Sequence[Any]:
        return self._values


AnySlot = Annotated[Choice | Text | Whole | Real | Date | Nested | File, Field(discriminator="type")]
