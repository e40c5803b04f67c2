"""What a generator is: rows, and what was rejected on the way, streamed. Knows no files of rows, no engine and no journal.

A generator is one file here, one YAML in conf/data/generator/, one class in config.py. What it makes is a function of its config, its seed and what
the teacher answers, in the order it asks; so a run that goes on after a kill, its answers read from the journal, makes the same rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from largeforge.chat import Answer, ChatRequest, Failure
from largeforge.contract import Reference
from largeforge.data.audit import utc_now
from largeforge.data.generator.gate import Gate
from largeforge.data.rows import Row

if TYPE_CHECKING:
    from largeforge.data.generator.config import GeneratorConfig

Ask = Callable[[Sequence[ChatRequest]], "Iterator[Answer | Failure]"]
"""ask(requests) -> answers and failures, in the order asked; ends early where a stop was asked for."""


@dataclass(frozen=True)
class Rejected:
    """Something that did not become a row.

    Args:
        reason: a short name that is counted: "empty", "too_similar", "unreachable".
        origin: what was tried, as a person would look it up: "facts, try 12".
        detail: what was measured, met or said by the engine.
    """

    reason: str
    origin: str
    detail: str = ""


@dataclass(frozen=True)
class Estimate:
    """What making all rows takes, before it is known how many are rejected.

    Args:
        num_requests: where everything is kept; `num_requests_at_most` where as much is rejected as the config allows.
        prompt_tokens: of one request on average, at 4 characters a token.
        completion_tokens: of one request at most.
    """

    num_requests: int = 0
    num_requests_at_most: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Generator:
    """Makes rows.

    Args:
        config: typed.
        seed: of everything random.
        ask: asks the teacher; None where there is none, or where only a plan is wanted.
        teacher: says who answers, for the lineage; a model is loaded when it is first asked.
        drawing: how the teacher answers where the generator does not say: max_tokens, temperature, top_p, top_k.
        now: ISO 8601 time, for the lineage.
    """

    needs_teacher: ClassVar[bool] = False

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        seed: int,
        ask: Ask | None = None,
        teacher: Callable[[], Reference] | None = None,
        drawing: Any = None,
        now: Callable[[], str] = utc_now,
    ) -> None:
        self.config: Any = config
        self.seed = seed
        self.ask = ask
        self._teacher = teacher
        self.drawing = drawing
        self.now = now
        self.gate = Gate(config, seed=seed)
        self.tally: Counter[str] = Counter()  # further numbers for result.json: requests, tokens, samples
        self.ended = ""  # why making ended before there were enough rows; empty where it did not

    @property
    def name(self) -> str:
        """The module's name, as users choose it: "template"."""
        return type(self).__module__.rpartition(".")[2]

    @cached_property
    def teacher(self) -> Reference:
        """Who answers."""
        return self._teacher() if self._teacher is not None else Reference("model", "unknown")

    def check(self) -> None:
        """Read every file that is needed. Raises InputError, before anything is loaded or asked."""

    def rows(self) -> Iterator[Row | Rejected]:
        """Yield rows and what was rejected, until `num_rows` rows are there or nothing more can be had."""
        raise NotImplementedError

    def sources(self) -> list[Reference]:
        """The files that rows are made of, and the teacher."""
        raise NotImplementedError

    def estimate(self) -> Estimate:
        """What it takes."""
        return Estimate()

    def passed(self, row: Row, answer: str, *, min_words: int = 0) -> Row | Rejected:
        """The row, or why it is not kept: too short, of low quality, or said before."""
        refused = self.gate.refusal(row, answer, min_words=min_words)
        return row if refused is None else Rejected(refused[0], row.origin, refused[1])


def number_of(*parts: object) -> int:
    """A seed in 0 .. 2**31 - 1 that stands for these parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4], "big") >> 1


def question_and_answer(row: Row) -> tuple[str, str]:
    """Every turn before the answer, and the answer; of a text both are the text."""
    if row.kind == "text":
        return row.content["text"], row.content["text"]
    if row.kind == "preference":
        return _said(row.content["prompt"]), _said(row.content["chosen"])
    return _said(row.content["messages"][:-1]), _said(row.content["messages"][-1:])


def _said(turns: Sequence[dict[str, str]]) -> str:
    return "\n".join(turn["content"] for turn in turns)
