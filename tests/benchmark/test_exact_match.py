"""Exact match: asks, compares, counts; nothing but whitespace around an answer is forgiven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from largeforge.chat import Answer, ChatRequest, Delta, Example, Message, Usage
from largeforge.errors import Interrupted
from tests.tiny_models import part


class Table:
    """An engine that knows some answers, and remembers what it was asked."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self.asked: list[ChatRequest] = []

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        for request in requests:
            self.asked.append(request)
            yield Answer(self.known.get(request.messages[-1].content, "?"), "stop", Usage(1, 1))

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        raise NotImplementedError


def example(prompt: str, answer: str) -> Example:
    return Example((Message("system", "s"), Message("user", prompt)), answer)


EXAMPLES = [example("a longer prompt", "two words"), example("b", "B"), example("cc", "C"), example("ddd", "D ")]
ENGINE = {"a longer prompt": "two words\n", "b": " B", "cc": "c", "ddd": "D"}


def test_counts() -> None:
    """Three of four: whitespace around is forgiven, case is not; answers stand in the order of the examples, stripped."""
    score = part("benchmark", "exact_match").run(Table(ENGINE), EXAMPLES)
    assert score.metrics == {"exact_match": 0.75, "num_rows": 4.0}
    assert score.answers == ["two words", "B", "c", "D"] and score.correct == [True, True, False, True]
    assert part("benchmark", "exact_match").run(Table({"a longer prompt": "two  words"}), EXAMPLES[:1]).metrics["exact_match"] == 0


def test_how_it_asks() -> None:
    """Greedily, with every turn of the prompt, at most `limit` rows and `max_tokens` tokens."""
    engine = Table(ENGINE)
    score = part("benchmark", "exact_match", limit=2, max_tokens=7).run(engine, EXAMPLES)
    assert score.metrics["num_rows"] == 2 and {r.messages for r in engine.asked} == {e.prompt for e in EXAMPLES[:2]}
    assert all(r.max_tokens == 7 and r.temperature == 0 for r in engine.asked)


def test_nothing_to_ask() -> None:
    assert part("benchmark", "exact_match").run(Table({}), []) is None
    assert part("benchmark", "none").run(Table({}), EXAMPLES) is None


class FakeRun:
    """A run that is asked to stop after some rows."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.title, self.closed = "", False
        self.progress = self

    def bar(self, title: str, *, total: int | None, unit: str = "") -> FakeRun:
        self.title, self.total = title, total
        return self

    def advance(self, count: int = 1, **fields: Any) -> None:
        self.told.append((count, fields))

    def close(self) -> None:
        self.closed = True

    @property
    def stop_asked(self) -> bool:
        return self.stop_after is not None and len(self.told) >= self.stop_after

    def interrupt(self, message: str, *, next_step: str = "") -> Interrupted:
        return Interrupted(message)


def test_progress() -> None:
    run = FakeRun()
    part("benchmark", "exact_match").run(Table(ENGINE), EXAMPLES, title="before", run=run)
    assert run.title == "exact match before" and run.closed
    assert sum(count for count, _ in run.told) == run.total == 4 and run.told[-1][1]["right"] == 3


def test_stop() -> None:
    run, engine = FakeRun(stop_after=2), Table(ENGINE)
    with pytest.raises(Interrupted):
        part("benchmark", "exact_match").run(engine, EXAMPLES, title="after", run=run)
    assert run.closed and len(engine.asked) == 2
