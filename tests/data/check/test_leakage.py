"""Rows of validation and test that training knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from largeforge.data.check.runs import runs_of, winnowed
from largeforge.data.rows import Kind, Row
from tests.data.check.clean import check, clean_rows, numbers, one

ONLY: dict[str, Any] = {"only": ["leakage"], "examples": 1000}


def shouted(text: str) -> str:
    """The same words in another dress: case, white space, the punctuation of sentences."""
    return "  " + text.upper().replace(". ", " !\n").replace(",", ";")


@pytest.mark.parametrize("kind", ["messages", "preference", "text"])
def test_planted_leaks_are_found(kind: Kind) -> None:
    """40 training rows shown again in test, 40 in validation, in another dress, among 1,000: recall 1, precision 1, as errors."""
    rows = clean_rows(kind)
    train = [row for row in rows if row.split == "train"]
    held = [number for number, row in enumerate(rows) if row.split != "train"][:80]
    for place, number in enumerate(held):
        rows[number] = replace(train[place * 7].rewritten(shouted, by="test"), split=rows[number].split, origin=rows[number].origin)
    (finding,) = check(rows, **ONLY)
    assert (finding.severity, finding.count, numbers(finding)) == ("error", 80, set(held))
    assert "prompt" in finding.message if kind != "text" else "say what a row" in finding.message
    assert finding.examples[0] == f"{rows[held[0]].origin} is known from {train[0].origin}"


def test_planted_contained_prompts_are_found() -> None:
    """40 test prompts inside the middle of longer training texts, among 1,000 rows: recall 1, precision 1."""
    rows = clean_rows("text")
    held = [number for number, row in enumerate(rows) if row.split == "test" and len(row.text()) > 150][:40]
    into = [number for number, row in enumerate(rows) if row.split == "train"][:40]
    for number, place in zip(held, into, strict=True):
        text = rows[place].content["text"]
        rows[place] = replace(rows[place], content={"text": f"{text[:50]} ({shouted(rows[number].content['text'])}) {text[50:]}"})
    (finding,) = check([replace(row, content={"text": row.content["text"].replace("(", " ").replace(")", " ")}) for row in rows], **ONLY)
    assert (finding.severity, finding.count, numbers(finding)) == ("error", 40, set(held))
    assert check(rows, only=["leakage"], leakage={"contained": False}) == []


def test_rows_of_one_template_are_no_leak() -> None:
    """400 rows that differ in one word at their end share almost every run of characters, and none contains another."""
    said = "Write the command that trains a small model on the rows of a file with a low learning rate and stores the result under the name"
    rows = [Row({"text": f"{said} run{number}."}, f"rows:{number}", split=["train", "test"][number % 2]) for number in range(400)]
    assert check(rows, **ONLY) == []


def test_other_signs_are_another_question() -> None:
    """What punctuation of sentences is, is left out; signs of arithmetic and short greetings are not leaks."""
    asked = [
        "What is the result of 12 + 30?",
        "What is the result of 12 - 30?",
        "What is the result of (12 + 3) * 0?",
        "What is the result of 12 + 3 * 0?",
        "Hi!",
        "hi",
    ]
    rows = [
        Row(
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"It is {number}."}]},
            f"rows:{number}",
            split=["train", "test"][number % 2],
        )
        for number, text in enumerate(asked)
    ]
    assert check(rows, **ONLY) == []
    (finding,) = check(rows, only=["leakage"], leakage={"min_characters": 0})
    assert finding.count == 1 and finding.examples == ["rows:5 is known from rows:4"]


def test_one_split_leaks_nothing() -> None:
    rows = [replace(row, split="train") for row in clean_rows(num_rows=50)]
    assert check([*rows, *rows], **ONLY) == []


def test_a_test_prompt_that_validation_knows_is_told() -> None:
    rows = clean_rows(num_rows=60)
    found = check([*rows, replace(rows[1], split="test", origin="again:1")], **ONLY)
    assert one(found, holding="prompt").examples == [f"again:1 is known from {rows[1].origin}"]


def test_runs_are_hashed_as_by_hand() -> None:
    """Equal runs have equal hashes wherever they stand, no run reaches over the end of a text, and what is shared by two texts is met."""
    texts = ["abcdefgh", "", "xxabcdefghyy", "abcdefg", "ünïcödé"]
    hashes, owners = runs_of(texts, 8)
    assert owners.tolist() == [0, 2, 2, 2, 2, 2, 4, 4, 4, 4]
    assert hashes[0] == hashes[3] and len(set(hashes.tolist())) == 9
    long = "".join(chr(97 + number * number % 26) for number in range(300))
    shared = long[100:195]
    picked, of = winnowed(*runs_of([long, shared, long[:94]], 32), 64)
    assert set(picked[of == 1].tolist()) <= set(picked[of == 0].tolist()) and (of == 1).sum() == 1 and (of == 2).sum() == 0
