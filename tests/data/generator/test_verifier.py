"""Verifiers against answers worked out by hand."""

from __future__ import annotations

import pytest

from largeforge.data.generator.verifier import exact_score, json_score, judged_score, length_score, verifier
from largeforge.errors import InputError
from tests.data.generator.scripted import config


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("12", "12", 1),
        ("7 + 5 = 12.", "12", 1),
        ("The answer is 1,200.0", "1200", 1),
        ("12 is wrong, it is 13", "12", 0),
        ("no number", "12", 0),
        ("-3", "3", 0),
        ("Paris.", "paris", 1),
        ("I think so.\nParis", "Paris", 1),
        ("not Paris", "Paris", 0),
        ("", "Paris", 0),
    ],
)
def test_exact_answer(answer: str, expected: str, score: float) -> None:
    assert exact_score(answer, expected) == score


@pytest.mark.parametrize(
    ("answer", "keys", "score"),
    [
        ('{"a": 1, "b": 2}', ["a", "b"], 1),
        ('{"a": 1}', ["a", "b"], 0.5),
        ("[1]", [], 1),
        ("[1]", ["a"], 0),
        ('Here:\n```json\n{"a": 1}\n```', ["a"], 1),
        ("{'a': 1}", [], 0),
        ("[" * 100_000, [], 0),
    ],
)
def test_json(answer: str, keys: list[str], score: float) -> None:
    assert json_score(answer, keys) == score


def test_length() -> None:
    assert [length_score("w " * words, 10) for words in (0, 5, 10, 15, 20, 99)] == [0, 0.5, 1, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("7", 6 / 9),
        ("Score: 10", 1),
        ("I give it 4/10, since 3 things are missing", 3 / 9),
        ("8 out of 10", 7 / 9),
        ("Rating: **9**", 8 / 9),
        ("from 1 to 10 it is good", None),
        ("1-10", None),
        ("great", None),
        ("11", None),
        ("", None),
    ],
)
def test_what_a_judge_said(said: str, score: float | None) -> None:
    assert judged_score(said) == score


def test_regex_needs_a_pattern() -> None:
    with pytest.raises(InputError, match="generator.pattern"):
        verifier(config("preference", score_by="regex"))
    with pytest.raises(InputError, match="no regular expression"):
        verifier(config("preference", score_by="regex", pattern="("))
    score = verifier(config("preference", score_by="regex", pattern="^[A-Z]"))
    assert (score("Yes", ""), score("no", "")) == (1, 0)


def test_the_list_is_closed() -> None:
    """No verifier runs code: another name does not pass the check of the config."""
    with pytest.raises(ValueError, match="score_by"):
        config("preference", score_by="python")
