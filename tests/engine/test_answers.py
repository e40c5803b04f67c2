"""The bridge: order, laziness, how many at once, journal, budget, stopping, an engine that is down; no thread is left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from largeforge.chat import Answer, ChatRequest, Delta, Failure, Usage
from largeforge.engine.answers import _BRIDGE, AHEAD, DOWN_AFTER, ShutOut, answers, every_answer, stream
from largeforge.engine.config import BudgetConfig
from largeforge.engine.journal import Journal
from largeforge.engine.limits import Budget
from largeforge.errors import EngineError
from tests.engine.conftest import ask
from tests.tiny_models import part


class Scripted:
    """An engine that answers its prompt as the prompt says: "slow ...", "down ...", "refuse ...", "malformed ...", "broken ...", anything else at once."""

    needs_model = False
    name = "scripted"
    in_flight = 4

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.running = self.most = self.cancelled = self.closed = 0

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        text = request.messages[-1].content
        self.asked.append(text)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.05 if text.startswith("slow") else 60 if text.startswith("hang") else 0)
            if text.startswith(("down", "refuse", "malformed")):
                reason = {"down": "unreachable", "refuse": "refused", "malformed": "malformed"}[text.split()[0]]
                raise EngineError(f"No: {text}.", reason=reason)
            if text.startswith("broken"):
                raise ZeroDivisionError(text)
            if text.startswith("shut"):
                raise ShutOut("The key is wrong.", reason="refused", next_step="another key")
            yield Delta(text[:2])
            yield Delta(text[2:], finish_reason="stop", usage=Usage(1, 2))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.closed += 1

    def answers(self, requests: Any) -> Iterator[Answer]:
        raise NotImplementedError

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        return stream(self, request)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def texts(found: Any) -> list[str]:
    return [one.text if isinstance(one, Answer) else one.reason for one in found]


def test_order_and_how_many_at_once() -> None:
    """Answers in the order asked though the first are slow; never more than in_flight at once, and as many where there is enough to ask."""
    engine = Scripted()
    asked = [f"slow {n}" if n % 3 == 0 else f"quick {n}" for n in range(20)]
    assert texts(answers(engine, map(ask, asked), in_flight=4)) == asked
    assert engine.most == 4 and engine.closed == 1
    assert texts(answers(engine, map(ask, asked), in_flight=1)) == asked and engine.closed == 2


def test_requests_are_pulled_as_answers_are_taken() -> None:
    """Endless requests are fine, and how far they were pulled is a function of the answers taken, never of time."""
    pulled = itertools.count()
    engine = Scripted()
    found = answers(engine, (ask(f"slow {next(pulled)}" if n % 2 else f"quick {next(pulled)}") for n in itertools.count()), in_flight=3)
    seen = []
    for _ in range(6):
        next(found)
        time.sleep(0.02)
        seen.append(pulled.__reduce__()[1][0])
    found.close()  # type: ignore[attr-defined]
    assert seen == [AHEAD * 3 + n for n in range(6)]


def test_closing_cancels_what_runs() -> None:
    engine = Scripted()
    found = answers(engine, map(ask, ["quick", "hang 1", "hang 2", "hang 3"]), in_flight=2)
    assert next(found) == Answer("quick", "stop", Usage(1, 2))
    start = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5 and engine.running == 0 and engine.closed == 1 and engine.cancelled in (1, 2)


def test_stop_ends_it_while_an_answer_is_waited_for() -> None:
    engine = Scripted()
    asked_to_stop = threading.Event()
    threading.Timer(0.1, asked_to_stop.set).start()
    assert texts(answers(engine, map(ask, ["quick", "hang"]), in_flight=2, stop=asked_to_stop.is_set)) == ["quick"]
    assert engine.cancelled == 1


def test_failures_are_yielded_in_their_place() -> None:
    """Refused and malformed requests fail alone; what the journal keeps are answers only."""
    engine = Scripted()
    found = list(answers(engine, map(ask, ["a", "refuse b", "malformed c", "down d", "e"]), in_flight=2))
    assert texts(found) == ["a", "refused", "malformed", "unreachable", "e"]
    assert found[1] == Failure("refused", "No: refuse b.")
    with pytest.raises(EngineError, match="No: refuse b") as caught:
        list(every_answer(engine, [ask("a"), ask("refuse b"), ask("c")], in_flight=2))
    assert caught.value.reason == "refused"


@pytest.mark.parametrize("num_requests", [1, 2, 3, 50])
def test_an_engine_that_is_down_from_the_start(num_requests: int) -> None:
    """The first few unreachable, or all where there are fewer: it ends, and says how to go on."""
    engine = Scripted()
    with pytest.raises(EngineError, match="scripted is down") as caught:
        list(answers(engine, (ask(f"down {n}") for n in range(num_requests)), in_flight=2))
    assert "resume=auto" in caught.value.next_step and "No: down 0." in str(caught.value)
    assert len(engine.asked) <= DOWN_AFTER + AHEAD * 2


def test_an_engine_that_goes_down_midway() -> None:
    """More failures in a row than could be running at once end it; fewer do not."""
    engine = Scripted()
    few = ["a", *[f"down {n}" for n in range(4)], "b"]
    assert texts(answers(engine, map(ask, few), in_flight=2)) == ["a", *["unreachable"] * 4, "b"]
    with pytest.raises(EngineError, match=r"is down: \d+ requests in a row"):
        list(answers(engine, map(ask, ["a", *[f"down {n}" for n in range(50)]]), in_flight=2))


def test_an_engine_that_lets_nobody_in() -> None:
    engine = Scripted()
    with pytest.raises(ShutOut, match="The key is wrong"):
        list(answers(engine, (ask(f"shut {n}") for n in range(50)), in_flight=2))
    assert len(engine.asked) <= AHEAD * 2


def test_a_fault_of_an_engine_is_no_answer() -> None:
    """What is no EngineError is a fault of ours and comes through as it is."""
    with pytest.raises(ZeroDivisionError, match="broken"):
        list(answers(Scripted(), map(ask, ["a", "broken", "b"]), in_flight=2))


def test_requests_that_fail() -> None:
    """An error in the caller's own generator comes through, and what runs is cancelled."""
    engine = Scripted()

    def source() -> Iterator[ChatRequest]:
        yield ask("hang")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(answers(engine, source(), in_flight=2))
    assert engine.running == 0 and engine.closed == 1


def test_asking_inside_of_asking() -> None:
    """A judge asked while its teacher answers shares the loop and, where it is the same engine, the engine; it is closed once, at the end."""
    engine = Scripted()
    seen = []
    for one in answers(engine, map(ask, "abc"), in_flight=2):
        assert isinstance(one, Answer)
        seen += texts(answers(engine, [ask(f"judge {one.text}")], in_flight=1))
        assert engine.closed == 0
    assert seen == ["judge a", "judge b", "judge c"] and engine.closed == 1


def test_a_stream() -> None:
    engine = Scripted()
    assert [delta.text for delta in engine.stream(ask("hello"))] == ["he", "llo"]
    with pytest.raises(EngineError, match="No: refuse"):
        list(engine.stream(ask("refuse")))

    class Endless(Scripted):
        async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
            self.running += 1
            try:
                while True:
                    await asyncio.sleep(0)
                    yield Delta("x")
            finally:
                self.running -= 1

    endless = Endless()
    said = endless.stream(ask("x"))
    next(said)
    said.close()  # type: ignore[attr-defined]
    assert endless.running == 0 and endless.closed == 1


def test_an_iterator_that_is_collected_in_the_bridge_itself() -> None:
    """Forgotten in a cycle, and found by the collector while the event loop's thread runs: nobody waits for themselves."""
    engine = Scripted()
    held: list[Any] = [answers(engine, map(ask, ["quick", "hang"]), in_flight=2)]
    held.append(held)
    next(held[0])
    thread = _BRIDGE._thread
    assert thread is not None and _BRIDGE._loop is not None
    loop = _BRIDGE._loop
    del held
    loop.call_soon_threadsafe(gc.collect)
    thread.join(10)
    assert not thread.is_alive() and engine.closed == 1 and engine.running == 0
    until = time.monotonic() + 5
    while _BRIDGE._thread is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert texts(answers(engine, [ask("again")], in_flight=1)) == ["again"]


def test_a_forked_process_can_ask() -> None:
    """A child that was forked while its parent asked has a bridge of its own."""
    found = answers(Scripted(), map(ask, ["quick", "hang"]), in_flight=2)
    next(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python says that forking beside threads is a risk: it is what is tried here
        child = os.fork()
    if child == 0:
        os._exit(0 if texts(answers(Scripted(), [ask("child")], in_flight=1)) == ["child"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    found.close()  # type: ignore[attr-defined]


# ---- journal ----


def test_what_is_in_the_journal_is_not_asked_again(tmp_path: Path) -> None:
    """Answers finished out of order are kept at once; failures are not kept; the same request twice is two answers."""
    asked = ["hang", "b", "b", "refuse c", "d"]
    engine = Scripted()
    with Journal(tmp_path / "answers.jsonl") as journal:
        stop_at = time.monotonic() + 0.5
        assert list(answers(engine, map(ask, asked), in_flight=3, journal=journal, stop=lambda: time.monotonic() > stop_at)) == []
        assert len(journal) == 3 and engine.cancelled == 1
    again = Scripted()
    with Journal(tmp_path / "answers.jsonl") as journal:
        asked[0] = "a"
        assert texts(answers(again, map(ask, asked), in_flight=3, journal=journal)) == ["a", "b", "b", "refused", "d"]
        assert sorted(again.asked) == ["a", "refuse c"] and len(journal) == 4


# ---- budget ----


def test_a_budget_that_is_spent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Running ones finish, no new ones start, the rest fail with "budget", it is told once; the journal's answers count, and come though it is spent."""
    engine = Scripted()
    limit = BudgetConfig(tokens=9, cost=None, prompt_price=0, completion_price=0)
    with Journal(tmp_path / "answers.jsonl") as journal:
        found = list(answers(engine, (ask(f"slow {n}") for n in range(10)), in_flight=2, journal=journal, budget=Budget(limit)))
    assert texts(found)[:3] == ["slow 0", "slow 1", "slow 2"] and set(texts(found)[4:]) == {"budget"} and len(engine.asked) in (3, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "the budget of 9 tokens is spent (9): what is asked already is finished, nothing more is asked"
    ]
    again = Scripted()
    with Journal(tmp_path / "answers.jsonl") as journal:
        assert texts(answers(again, (ask(f"slow {n}") for n in range(10)), in_flight=2, journal=journal, budget=Budget(limit))) == texts(found)
    assert again.asked == []


def test_a_budget_of_money() -> None:
    budget = Budget(BudgetConfig(tokens=None, cost=0.01, prompt_price=2.0, completion_price=4.0))
    budget.take(Usage(1000, 1000))
    assert budget.cost == pytest.approx(0.006) and not budget.spent
    budget.take(Usage(0, 1000))
    assert budget.spent == "the budget of 0.01 is spent (0.0100 for 3,000 tokens)"


def test_an_engine_has_a_budget_of_its_own() -> None:
    budget = {"tokens": 4, "cost": None, "prompt_price": 0.0, "completion_price": 0.0}
    echo = part("engine", "echo", budget=budget)
    assert texts(answers(echo, map(ask, ["a b", "a b", "a b"]), in_flight=1)) == ["echo: a b", "budget", "budget"]
    with pytest.raises(EngineError, match="the budget of 4 tokens is spent"):
        list(echo.answers([ask("c")]))


# ---- echo ----


def test_echo() -> None:
    """Says the last turn, counts words, is cut at max_tokens; needs no model."""
    echo = part("engine", "echo")
    assert not echo.needs_model
    assert list(echo.answers([ask("hello there"), ask("one two three", max_tokens=2)])) == [
        Answer("echo: hello there", "stop", Usage(2, 3)),
        Answer("echo: one", "length", Usage(3, 2)),
    ]
    assert "".join(delta.text for delta in echo.stream(ask("hello there"))) == "echo: hello there"
