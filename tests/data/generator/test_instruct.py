"""instruct: what the teacher says becomes rows or is counted, with everything that is known about where a row came from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from largeforge.chat import Answer, ChatRequest, Failure, Usage
from largeforge.data.generator.taught import tidy
from tests.data.generator.scripted import domain_file, parted, taught


def fine(request: ChatRequest) -> str:
    """A new question every time it is asked for one, and a good answer to every question."""
    last = request.messages[-1].content
    return (
        f'Question: "What is {last.split()[-1]} number {request.seed} made of?"' if last.startswith("Ask about") else f"It is made of {last.split()[2]} paint."
    )


def test_pairs_with_lineage(tmp_path: Path) -> None:
    """Proves SYS-F-001, SYS-F-007: questions and answers of the teacher; each row knows generator, domain, prompt, teacher, parameters and time."""
    generator, teacher = taught("instruct", fine, num_rows=6, domain=domain_file(tmp_path), shots=2, temperature=0.9)
    rows, rejected = parted(generator)
    assert len(rows) == 6 and not rejected and not generator.ended
    question, answer = (turn["content"] for turn in rows[0].content["messages"])
    assert question.startswith("What is ") and question.endswith(" made of?") and answer == f"It is made of {question.split()[2]} paint."
    assert rows[0].lineage == {
        "generator": "instruct",
        "domain": "tiny",
        "prompt": "tiny/instruct",
        "topic": question.split()[2],
        "teacher": {"name": "tiny", "revision": "r1", "sha256": "abc"},
        "parameters": {"temperature": 0.9, "answer_temperature": 0.25, "top_p": 0.9, "top_k": 0, "max_tokens": 50, "seed": 0, "try": 0},
        "time": "2026-11-22T00:00:00+00:00",
    }
    assert {row.lineage["topic"] for row in rows[:4]} == {"red", "green", "blue", "cyan"}, "every topic once before any comes again"
    inventing = [request for request in teacher.asked if request.messages[-1].content.startswith("Ask about")]
    answering = [request for request in teacher.asked if request not in inventing]
    assert {request.temperature for request in inventing} == {0.9} and {request.temperature for request in answering} == {0.25}
    assert {(request.top_p, request.max_tokens, len(request.messages)) for request in teacher.asked} == {(0.9, 50, 5)}
    assert len({request.seed for request in teacher.asked}) == len(teacher.asked)


def test_everything_unfit_is_counted_and_never_a_row(tmp_path: Path) -> None:
    """Proves SYS-F-003: failures, empty, cut off, too short and repeated answers are rejected by name."""
    said: list[Any] = [
        Failure("unreachable", "no route"),
        Failure("malformed", "no JSON"),
        Failure("refused", "no"),
        "  ",
        Answer("What is the", "length", Usage(1, 1)),
        "Why so",
        "What is grey made of?",
        "What is the first question?",
        "What is the first question!",
        "What is the second question?",
        "What is the third question?",
        "What is the fourth question?",
    ]
    answers = {"first": "One word", "second": "What is the second question?", "third": Failure("unreachable", "gone"), "fourth": "A proper answer here."}
    queue = iter(said)

    def say(request: ChatRequest) -> Any:
        last = request.messages[-1].content
        return next(queue) if last.startswith("Ask about") else answers[last.split()[3]]

    generator, _ = taught("instruct", say, num_rows=3, attempts=4, round=12, domain=domain_file(tmp_path))
    rows, rejected = parted(generator)
    assert [row.content["messages"][1]["content"] for row in rows] == ["A proper answer here."]
    assert Counter(item.reason for item in rejected) == {
        "unreachable": 2, "malformed": 1, "refused": 1, "empty": 1, "cut_off": 1, "too_short": 2, "repeated": 2, "repeats_question": 1,
    }  # fmt: skip
    assert "12 tries" in generator.ended and "1 of 3" in generator.ended
    assert next(item for item in rejected if item.reason == "refused").origin == "instruct tiny, try 2"


def test_thresholds_apply_while_it_runs(tmp_path: Path) -> None:
    """Proves SYS-F-003, SYS-F-006: a question like an earlier one is not even answered; an answer of low quality is no row."""
    questions = iter(["What is the big red ball made of today?", "What is the big red ball made of now?", "Who sings?  Tell me more about it."])

    def say(request: ChatRequest) -> str:
        last = request.messages[-1].content
        if last.startswith("Ask about"):
            return next(questions)
        return "It is made of rubber and air." if "ball" in last else "bad " * 60

    generator, teacher = taught("instruct", say, num_rows=3, attempts=1, domain=domain_file(tmp_path), similarity=0.6, quality=0.5)
    rows, rejected = parted(generator)
    assert [row.content["messages"][1]["content"] for row in rows] == ["It is made of rubber and air."]
    assert [item.reason for item in rejected] == ["too_similar", "low_quality"]
    assert rejected[0].detail == "like instruct tiny, try 0"
    assert len(teacher.asked) == 5


def test_in_rounds_of_any_size_asked_in_any_number(tmp_path: Path) -> None:
    """The same seed gives the same rows whatever num_rows; another seed asks otherwise."""
    ids = [
        [row.id for row in parted(taught("instruct", fine, num_rows=count, round=4, seed=seed, domain=domain_file(tmp_path))[0])[0]]
        for count, seed in ((9, 0), (5, 0), (5, 1))
    ]
    assert ids[0][:5] == ids[1]
    assert not set(ids[1]) & set(ids[2])


def test_a_spent_budget_ends_it(tmp_path: Path) -> None:
    """What was made stays; the round is ended and no other begun."""
    left = iter(range(9))

    def say(request: ChatRequest) -> str | Failure:
        return fine(request) if next(left, None) is not None else Failure("budget", "Not asked: the budget of 90 tokens is spent (90).")

    generator, teacher = taught("instruct", say, num_rows=50, round=5, domain=domain_file(tmp_path))
    rows, rejected = parted(generator)
    assert len(rows) == 4 and [item.reason for item in rejected] == ["budget"]
    assert generator.ended == "the budget of 90 tokens is spent (90)"
    assert len(teacher.asked) == 10


@pytest.mark.parametrize(
    ("said", "text"),
    [('"Why?"', "Why?"), ("Question: Why?", "Why?"), ("A: 'x' and 'y'", "'x' and 'y'"), (" Answer:\nYes. ", "Yes."), ('"a" or "b"', '"a" or "b"'), ('"', '"')],
)
def test_tidy(said: str, text: str) -> None:
    assert tidy(said) == text


def test_the_estimate_counts_both_requests(tmp_path: Path) -> None:
    """By hand: 2 requests for each of 10 rows; prompts of 14 + 20 + 16 (asking) and 20 + 32 + ... characters over 4."""
    generator, _ = taught("instruct", fine, num_rows=10, attempts=3, shots=1, domain=domain_file(tmp_path))
    estimate = generator.estimate()
    assert (estimate.num_requests, estimate.num_requests_at_most, estimate.completion_tokens) == (20, 60, 50)
    assert 10 <= estimate.prompt_tokens <= 25
