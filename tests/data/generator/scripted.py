"""What tests of generators share: typed configs from the YAML that ships, and a teacher whose answers a test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largeforge.build import build
from largeforge.chat import Answer, ChatRequest, Failure, Usage
from largeforge.contract import Reference
from largeforge.data.generator import config as configs
from largeforge.data.generator.base import Rejected
from largeforge.data.rows import Row
from tests.tiny_models import values

DOMAIN = """\
name: tiny
description: a domain for tests
topics: [red, green, blue, cyan]
seeds:
  - {topic: grey, instruction: What is grey made of, response: Grey is made of black and white.}
  - {topic: pink, instruction: What is pink made of, response: Pink is made of red and white.}
instruction_prompt: "Ask about {{ topic }}"
response_prompt: "{{ instruction }}"
growth_prompt: "{{ count }} more"
judge_prompt: "Judge {{ response }} as an answer to {{ instruction }}"
"""


def config(choice: str, **changes: Any) -> Any:
    """The typed config of conf/data/generator/<choice>.yaml, with changes."""
    found = {**values("data/generator", choice), **changes}
    return getattr(configs, found["_target_"].rpartition(".")[2] + "Config").model_validate(found)


@dataclass(frozen=True)
class Drawing:
    """How a teacher answers where the generator does not say."""

    max_tokens: int = 50
    temperature: float = 0.25
    top_p: float = 0.9
    top_k: int = 0


@dataclass
class Teacher:
    """Answers what `say` returns: a text, or a Failure; remembers what it was asked."""

    say: Callable[[ChatRequest], str | Failure | Answer]
    asked: list[ChatRequest] = field(default_factory=list)

    def __call__(self, requests: Sequence[ChatRequest]) -> Iterator[Answer | Failure]:
        for request in requests:
            self.asked.append(request)
            said = self.say(request)
            yield Answer(said, "stop", Usage(10, len(said.split()))) if isinstance(said, str) else said


def domain_file(folder: Path, text: str = DOMAIN) -> str:
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def taught(choice: str, say: Callable[[ChatRequest], Any], *, seed: int = 0, **changes: Any) -> tuple[Any, Teacher]:
    """A generator and its teacher; nothing is left out for its quality or similarity unless a test says so."""
    teacher = Teacher(say)
    settings = {"quality": 0.0, "similarity": 1.0, **changes}
    generator = build(
        config(choice, **settings),
        seed=seed,
        ask=teacher,
        teacher=lambda: Reference("model", "tiny", "r1", "abc"),
        drawing=Drawing(),
        now=lambda: "2026-11-22T00:00:00+00:00",
    )
    generator.check()
    return generator, teacher


def parted(generator: Any) -> tuple[list[Row], list[Rejected]]:
    """What it kept and what it rejected."""
    items = list(generator.rows())
    return [item for item in items if isinstance(item, Row)], [item for item in items if isinstance(item, Rejected)]
