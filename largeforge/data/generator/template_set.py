"""A template set: its YAML, checked, and the rows it makes. Row i is a function of (seed, i) and the set alone.

Knows slots and the sandbox; knows nothing about how many rows are wanted or which of them are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import Field, model_validator

from largeforge.artifact import sha256_of
from largeforge.config.nearest import nearest
from largeforge.config.typed import PositiveFloat, Typed
from largeforge.contract import Reference
from largeforge.data.generator.sandbox import TemplateFault, Text, compiled
from largeforge.data.generator.slots import AnySlot, File, Nested, Scalar, Slot
from largeforge.data.generator.typed_yaml import Faults, read_typed, set_path
from largeforge.data.rows import TURNS, Row, kind_of
from largeforge.errors import InputError

_EXAMPLE = Random("a first look")


class Turn(Typed):
    """One turn of a row; its content is a template."""

    role: Literal["system", "user", "assistant"]
    content: str


class Pattern(Typed):
    """One kind of row of a set: messages, or prompt, chosen and rejected, or text; every text in it is a template."""

    id: str = Field(pattern=r"^[\w.-]+$")
    weight: PositiveFloat = 1.0
    messages: list[Turn] | None = None
    prompt: list[Turn] | None = None
    chosen: list[Turn] | None = None
    rejected: list[Turn] | None = None
    text: str | None = None
    fields: dict[str, Scalar] = Field(default_factory=dict)

    @model_validator(mode="after")
    def one_kind(self) -> Pattern:
        given = tuple(name for name in ("messages", "prompt", "chosen", "rejected", "text") if getattr(self, name) is not None)
        if given not in (("messages",), ("prompt", "chosen", "rejected"), ("text",)):
            raise ValueError(f"a template holds messages, or text, or prompt, chosen and rejected; this one holds {', '.join(given) or 'none'}")
        for name, last in (("messages", "assistant"), ("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            turns = getattr(self, name)
            if turns is not None and (not turns or turns[-1].role != last):
                raise ValueError(f"{name} ends with a turn of the {last}")
        clash = [name for name in self.fields if name in ("messages", "prompt", "chosen", "rejected", "text")]
        if clash:
            raise ValueError(f"fields cannot be called {clash[0]}")
        return self

    def content(self) -> dict[str, Any]:
        """The row with its templates in place of texts."""
        found: dict[str, Any] = dict(self.fields)
        for name in ("messages", "prompt", "chosen", "rejected"):
            turns = getattr(self, name)
            if turns is not None:
                found[name] = [turn.model_dump() for turn in turns]
        return found if self.text is None else {**found, "text": self.text}


class TemplateSetFile(Typed):
    """The YAML of a template set."""

    name: str = Field(pattern=r"^[\w.-]+$")
    description: str
    slots: dict[str, AnySlot] = Field(default_factory=dict)
    templates: list[Pattern] = Field(min_length=1)


@dataclass(frozen=True)
class Compiled:
    """A pattern ready to be filled.

    Args:
        texts: where each template stands in the row, and the template.
        drawn: the slots to draw, in the order of the set.
        nested: the slots to render, each after those it needs.
    """

    pattern: Pattern
    texts: tuple[tuple[tuple[str | int, ...], Text], ...]
    drawn: tuple[str, ...]
    nested: tuple[str, ...]


class TemplateSet:
    """A checked set. Raises InputError, with file and line of every fault, where it cannot be used.

    Args:
        path: of its YAML.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file, faults = read_typed(path, TemplateSetFile)
        self.slots: Mapping[str, Slot] = self.file.slots
        self._nested = self._compile_nested(faults)
        self.compiled = [self._compile(pattern, ("templates", position), faults) for position, pattern in enumerate(self.file.templates)]
        ids = [pattern.id for pattern in self.file.templates]
        for position, name in enumerate(ids):
            if name in ids[:position]:
                faults.add(("templates", position, "id"), f"{name} stands twice")
        faults.told()
        self._try(faults)
        faults.told()

    @property
    def name(self) -> str:
        return self.file.name

    @cached_property
    def source(self) -> Reference:
        """The set as lineage names it."""
        return Reference("templates", self.name, sha256=sha256_of(self.path))

    def sources(self) -> list[Reference]:
        """The set and the files its slots read."""
        files = [slot.path for slot in self.slots.values() if isinstance(slot, File)]
        return [self.source, *(Reference("file", name, sha256=sha256_of(self.path.parent / name)) for name in dict.fromkeys(files))]

    def row(self, seed: int, number: int) -> Row:
        """Row `number` of this seed. Raises InputError for a template that fails on what was drawn."""
        rng = Random(f"{seed} {self.name} {number}")
        chosen = rng.choices(self.compiled, [item.pattern.weight for item in self.compiled])[0]
        values = {name: self.slots[name].draw(rng) for name in chosen.drawn}
        lineage = {"generator": "template", "template": f"{self.name}/{chosen.pattern.id}", "parameters": {"seed": seed, "draw": number}}
        try:
            return Row(self._filled(chosen, values), f"template {self.name}/{chosen.pattern.id}, draw {number}", lineage)
        except TemplateFault as fault:
            raise InputError(
                f"{self.path}: template {chosen.pattern.id}, draw {number}: {fault.message}", next_step=f"mend the template in {self.path}"
            ) from fault

    @property
    def count_at_most(self) -> int:
        """How many ways there are to fill the set; not all of them need give different rows."""
        return sum(prod(self.slots[name].count for name in item.drawn) for item in self.compiled)

    def every(self) -> Iterator[Row]:
        """Every row that the set can make, some of them perhaps more than once."""
        for item in self.compiled:
            for values in product(*(self.slots[name].every() for name in item.drawn)):
                yield Row(self._filled(item, dict(zip(item.drawn, values, strict=True))), f"template {self.name}/{item.pattern.id}")

    def _filled(self, item: Compiled, drawn: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(drawn)
        for name in item.nested:
            values[name] = self._nested[name].render(values)
        content = item.pattern.content()
        for place, text in item.texts:
            holder: Any = content
            for part in place[:-1]:
                holder = holder[part]
            holder[place[-1]] = text.render(values)
        for name in TURNS[kind_of(content)]:
            if not content[name][-1]["content"].strip():
                raise TemplateFault(f"the last turn of {name} is empty")
        if not content.get("text", "x").strip():
            raise TemplateFault("the text is empty")
        return content

    # ---- checking ----

    def _compile_nested(self, faults: Faults) -> dict[str, Text]:
        found = {}
        for name, slot in self.file.slots.items():
            if isinstance(slot, File):
                wrong = slot.read(self.path.parent)
                if wrong:
                    faults.add(("slots", name, "path"), wrong)
            if isinstance(slot, Nested):
                text = self._text(slot.template, ("slots", name, "template"), faults)
                if text is not None:
                    found[name] = text
        return found

    def _compile(self, pattern: Pattern, where: tuple[str | int, ...], faults: Faults) -> Compiled:
        texts = []
        for place, source in _texts(pattern.content(), ()):
            inside = ("fields", *place) if place[0] in pattern.fields else place
            text = self._text(source, (*where, *inside), faults)
            if text is not None:
                texts.append((place, text))
        nested: list[str] = []
        needed: set[str] = set()
        for _, text in texts:
            for name in sorted(text.names):
                self._need(name, needed, nested, (), faults)
        return Compiled(pattern, tuple(texts), tuple(name for name in self.slots if name in needed), tuple(nested))

    def _need(self, name: str, needed: set[str], nested: list[str], above: tuple[str, ...], faults: Faults) -> None:
        """Note a slot and, before it, all that it needs itself."""
        if name in above:
            faults.add(("slots", name, "template"), f"needs itself: {' -> '.join([*above, name])}")
        elif name in self._nested:
            for inner in sorted(self._nested[name].names):
                self._need(inner, needed, nested, (*above, name), faults)
            if name not in nested:
                nested.append(name)
        else:
            needed.add(name)

    def _text(self, source: str, where: tuple[str | int, ...], faults: Faults) -> Text | None:
        try:
            text = compiled(source)
        except TemplateFault as fault:
            faults.add(where, fault.message, below=fault.line - 1 + ("\n" in source.strip()))
            return None
        for name in sorted(text.names - set(self.slots)):
            near = nearest(name, self.slots)
            faults.add(where, f"there is no slot {name}" + (f" (did you mean {near}?)" if near else f" (there are: {', '.join(self.slots) or 'none'})"))
        return text

    def _try(self, faults: Faults) -> None:
        """Fill every pattern once, so that a fault in an expression is told before any row is written."""
        for position, item in enumerate(self.compiled):
            try:
                self._filled(item, {name: self.slots[name].draw(_EXAMPLE) for name in item.drawn})
            except TemplateFault as fault:
                faults.add(("templates", position, "id"), f"{item.pattern.id}: {fault.message}")


def open_set(name: str, *, key: str) -> TemplateSet:
    """Open a shipped set by its name, or one's own by its path; `key` is what the user set to it."""
    return TemplateSet(set_path(name, folder="templates", key=key))


def _texts(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every text of a row that may hold a template, with its place."""
    if isinstance(value, str):
        if place[-1] != "role":
            yield place, value
    elif isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(child, (*place, key))
