"""Rows that repeat others, exactly or nearly; prompts with two answers."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from largeforge.data.rows import Kind, Row
from tests.data.check.clean import check, clean_rows, numbers, one, sentences

ONLY: dict[str, Any] = {"only": ["duplicates"], "examples": 1000}


def with_origins(rows: list[Row]) -> list[Row]:
    return [replace(row, origin=f"rows.jsonl:{number}") for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize("kind", ["messages", "preference", "text"])
def test_planted_repeats_are_found(kind: Kind) -> None:
    """40 rows repeated at the end of 1,000: recall 1, precision 1, each with the row that it repeats."""
    rows = clean_rows(kind)
    found = check(with_origins([*rows, *rows[::25]]), **ONLY)
    (finding,) = found
    assert (finding.severity, finding.count, numbers(finding)) == ("warning", 40, set(range(1000, 1040)))
    assert finding.examples[1] == "rows.jsonl:1002 repeats rows.jsonl:26"


def test_planted_conflicting_answers_are_found() -> None:
    """40 prompts answered again, otherwise, among 1,000: all 80 rows are counted, the 40 later ones named."""
    rows, draw = clean_rows(), random.Random(1)
    again = [
        replace(row, content={**row.content, "messages": [*row.content["messages"][:-1], {"role": "assistant", "content": sentences(draw, 6, 6)}]})
        for row in rows[::25]
    ]
    (finding,) = check(with_origins([*rows, *again]), **ONLY)
    assert (finding.severity, finding.count, numbers(finding)) == ("warning", 80, set(range(1000, 1040)))
    assert check(with_origins([*rows, *again]), **{**ONLY, "duplicates": {"conflict_share": 0.1}}) == []


def test_planted_contradictions_of_preference_are_found() -> None:
    """40 pairs turned round among 1,000: recall 1, precision 1; two pairs for one prompt that agree are none."""
    rows = clean_rows("preference")
    turned = [replace(row, content={**row.content, "chosen": row.content["rejected"], "rejected": row.content["chosen"]}) for row in rows[::25]]
    finding = one(check(with_origins([*rows, *turned]), **ONLY), holding="rejects")
    assert finding.count == 80  # each of the two rows contradicts the other
    more = [replace(row, content={**row.content, "rejected": [{"role": "assistant", "content": "No."}]}) for row in rows[::25]]
    assert not [one for one in check(with_origins([*rows, *more]), **ONLY) if "rejects" in one.message]


def test_planted_near_repeats_are_found() -> None:
    """Among 1,000 texts, 40 with one word changed and 40 with another case: recall >= 0.95, precision 1; 40 that share half their text are not told."""
    rows, draw = clean_rows("text"), random.Random(2)
    changed = []
    for row in [row for row in rows if len(row.text()) > 400][:40]:
        words = row.content["text"].split()
        words[len(words) // 2] = "somewhere"
        changed.append(Row({"text": " ".join(words)}, ""))
    shouted = [Row({"text": row.content["text"].upper()}, "") for row in rows[500:540]]
    halves = [Row({"text": row.text()[: len(row.text()) // 2] + sentences(draw, 3, 3)}, "") for row in rows[900:940]]
    finding = one(check(with_origins([*rows, *changed, *shouted, *halves]), **ONLY), holding="nearly repeat")
    found, planted = numbers(finding), set(range(1000, 1080))
    assert found <= planted and len(found & planted) >= 0.95 * len(planted)
    assert finding.count == len(found)


def test_a_sample_gives_the_share_of_all_rows() -> None:
    """Of 4,000 rows with 10 % near repeats, 1,000 are compared: the share found is near that of all, whatever the order of the rows."""
    rows = clean_rows("text", 3600)
    rows = [*rows, *(Row({"text": row.content["text"][:-1] + " indeed."}, "") for row in rows[:400])]
    told = {}
    for order in (0, 1):
        random.Random(order).shuffle(rows)
        finding = one(check(with_origins(rows), only=["duplicates"], duplicates={"sample": 1000}), holding="nearly repeat")
        told[order] = (finding.message, finding.count)
    assert told[0] == told[1]
    assert 60 <= told[0][1] <= 140
