"""A domain: topics, examples and prompts that steer a teacher towards a field, read from YAML. Knows no engine.

Examples are shown to the teacher as earlier turns of the conversation, each asked for with the very prompt that asks for the new one: small models follow a
pattern far better than a description of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from largeforge.artifact import sha256_of
from largeforge.chat import Message
from largeforge.config.typed import Typed
from largeforge.contract import Reference
from largeforge.data.generator.sandbox import TemplateFault, Text, compiled
from largeforge.data.generator.typed_yaml import Faults, read_typed, set_path
from largeforge.errors import InputError

PROMPTS = {
    "instruction_prompt": ("topic",),
    "response_prompt": ("instruction",),
    "growth_prompt": ("count",),
    "judge_prompt": ("instruction", "response"),
}
"""The prompts of a domain, and the names that each may use."""


class Seed(Typed):
    """An example of the domain: what is asked, about what, and a good answer."""

    topic: str
    instruction: str = Field(min_length=1)
    response: str = Field(min_length=1)


class DomainFile(Typed):
    """The YAML of a domain.

    Args:
        system: said to the teacher before everything else; null is nothing.
        keep_system: whether rows begin with it too.
        topics: what instructions are asked about, in turn.
        seeds: written by people; a few are shown with every request.
        instruction_prompt: asks for an instruction about {{ topic }}.
        response_prompt: asks for the response to {{ instruction }}.
        growth_prompt: asks for {{ count }} different instructions, numbered; needed by self_instruct.
        judge_prompt: asks how good {{ response }} is as an answer to {{ instruction }}, from 1 to 10; needed by preference with score_by=judge.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    description: str
    system: str | None = None
    keep_system: bool = False
    topics: list[str] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)
    instruction_prompt: str
    response_prompt: str
    growth_prompt: str | None = None
    judge_prompt: str | None = None


class Domain:
    """A checked domain. Raises InputError, with file and line of every fault, where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file, faults = read_typed(path, DomainFile)
        self._prompts: dict[str, Text] = {}
        for name, allowed in PROMPTS.items():
            self._compile(name, allowed, faults)
        faults.told()

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def seeds(self) -> list[Seed]:
        return self.file.seeds

    @cached_property
    def source(self) -> Reference:
        """The domain as lineage names it."""
        return Reference("domain", self.name, sha256=sha256_of(self.path))

    @property
    def opening(self) -> list[Message]:
        """What every request begins with."""
        return [Message("system", self.file.system)] if self.file.system else []

    def prompt(self, name: str, **values: Any) -> str:
        """Fill one of the prompts. Raises InputError where the domain has none of that name, or it fails on these values."""
        if name not in self._prompts:
            raise InputError(f"{self.path} has no {name}, which is needed here.", next_step=f"add {name}: ... to {self.path}, or another generator.domain")
        try:
            return self._prompts[name].render(values).strip()
        except TemplateFault as fault:
            raise InputError(f"{self.path}: {name}: {fault.message}", next_step=f"mend {name} in {self.path}") from fault

    def asking_instruction(self, topic: str, examples: Sequence[Seed]) -> tuple[Message, ...]:
        """The conversation that asks for an instruction."""
        turns = self.opening
        for seed in examples:
            turns += [Message("user", self.prompt("instruction_prompt", topic=seed.topic)), Message("assistant", seed.instruction)]
        return (*turns, Message("user", self.prompt("instruction_prompt", topic=topic)))

    def asking_response(self, instruction: str, examples: Sequence[Seed]) -> tuple[Message, ...]:
        """The conversation that asks for the response to an instruction."""
        turns = self.opening
        for seed in examples:
            turns += [Message("user", self.prompt("response_prompt", instruction=seed.instruction)), Message("assistant", seed.response)]
        return (*turns, Message("user", self.prompt("response_prompt", instruction=instruction)))

    def asking_more(self, shown: Sequence[str], count: int) -> tuple[Message, ...]:
        """The conversation that asks for so many new instructions; those shown are what was answered before, as many at a time."""
        turns = self.opening
        for start in range(0, len(shown), count):
            group = shown[start : start + count]
            listed = "\n".join(f"{number}. {instruction}" for number, instruction in enumerate(group, 1))
            turns += [Message("user", self.prompt("growth_prompt", count=len(group))), Message("assistant", listed)]
        return (*turns, Message("user", self.prompt("growth_prompt", count=count)))

    def said(self, instruction: str) -> list[dict[str, str]]:
        """The turns before the answer, as a row holds them."""
        opening = self.opening if self.file.keep_system else []
        return [message.as_dict() for message in (*opening, Message("user", instruction))]

    def _compile(self, name: str, allowed: Sequence[str], faults: Faults) -> None:
        source = getattr(self.file, name)
        if source is None:
            return
        try:
            text = compiled(source)
        except TemplateFault as fault:
            faults.add((name,), fault.message, below=fault.line - 1 + ("\n" in source.strip()))
            return
        for unknown in sorted(text.names - set(allowed)):
            faults.add((name,), f"there is no {{{{ {unknown} }}}} here (there are: {', '.join(allowed)})")
        for unused in sorted(set(allowed) - text.names - {"count"}):
            faults.add((name,), f"{{{{ {unused} }}}} must stand in it")
        self._prompts[name] = text


def open_domain(name: str) -> Domain:
    """Open a shipped domain by its name, or one's own by its path."""
    return Domain(set_path(name, folder="domains", key="generator.domain"))
