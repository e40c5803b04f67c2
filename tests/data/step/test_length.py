"""Rows outside the limits are dropped with what was measured; rows inside pass untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from largeforge.data.rows import Row
from largeforge.errors import InputError
from tests.data.step.made import chat, dropped, kept, make, preference, text
from tests.data.tiny import make_tokenizer


def test_every_limit_drops_what_breaks_it_and_nothing_else() -> None:
    """Planted defects, one a limit: recall and precision are 1; the good rows come through as the same objects."""
    step = make("length", min_chars=10, max_chars=200, min_words=2, max_words=30, min_turns=2, max_turns=4, min_answer_chars=2)
    long_chat = Row({"messages": [{"role": role, "content": "one two three"} for role in ("user", "assistant") * 3]}, "f:9")
    half_chat = Row({"messages": [{"role": "assistant", "content": "an answer to nobody"}]}, "f:8")
    good = [chat("What is the capital of France?", "Paris."), text("Two words, or some more."), preference("Which one is it?", "This.", "That.")]
    bad = [
        (text("short"), "too_short", "5 characters (at least 10)"),
        (text("far " * 51), "too_long", "204 characters (at most 200)"),
        (text("onewordalone"), "too_short", "1 word (at least 2)"),
        (text("a b " * 16), "too_long", "32 words (at most 30)"),
        (long_chat, "too_many_turns", "6 turns (at most 4)"),
        (half_chat, "too_few_turns", "1 turn (at least 2)"),
        (chat("What is it, do you think?", "?"), "answer_too_short", "an answer of 1 character (at least 2)"),
    ]
    items = list(step([*good, *(row for row, _, _ in bad)]))
    assert [item is row for item, row in zip(items, good, strict=False)] == [True] * 3
    assert [(item.reason, item.detail) for item in dropped(items)] == [(reason, detail) for _, reason, detail in bad]


def test_limits_are_inclusive() -> None:
    step = make("length", min_chars=5, max_chars=7)
    assert [row.content["text"] for row in kept(step(text("x" * count) for count in range(3, 10)))] == ["x" * 5, "x" * 6, "x" * 7]


def test_the_system_message_is_no_turn() -> None:
    row = Row({"messages": [{"role": "system", "content": "Be brief."}, *chat("What is it?", "A stone.").content["messages"]]}, "f:1")
    assert kept(make("length", max_turns=2)([row])) == [row]


def test_the_shipped_limits_keep_good_rows() -> None:
    good = [chat("What is the capital of France?", "Paris."), chat("2 + 2 = ?", "4 it is"), text("A short text.")]
    assert kept(make("length")(good)) == good


def test_tokens_are_counted_by_a_named_tokenizer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    row = chat("What is the capital of France?", "The capital of France is Paris.")
    count = sum(len(tokenizer(part, add_special_tokens=False).input_ids) for part in row.texts())
    assert kept(make("length", max_tokens=count, tokenizer=str(tmp_path))([row])) == [row]
    left = dropped(make("length", max_tokens=count - 1, tokenizer=str(tmp_path / "tokenizer.json"))([row]))
    assert [(item.reason, item.detail) for item in left] == [("too_many_tokens", f"{count} tokens (at most {count - 1})")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_chars": 20, "max_chars": 10}, "min_chars = 20 is above"),
        ({"min_turns": 3, "max_turns": 2}, "min_turns = 3 is above"),
        ({"max_tokens": 5}, "which tokenizer"),
        ({"max_tokens": 5, "tokenizer": "nowhere"}, "no tokenizer.json"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make("length", **changes)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is no tokenizer"):
        make("length", max_tokens=5, tokenizer=str(tmp_path))
