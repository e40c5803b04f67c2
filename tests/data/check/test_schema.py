"""Rows of the wrong shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from largeforge.data.check.schema import fault_of
from largeforge.data.rows import Row
from tests.data.check.clean import check, clean_rows, one

USER, ANSWER, SYSTEM = ({"role": role, "content": "Said."} for role in ("user", "assistant", "system"))
FAULTS: list[tuple[Any, str]] = [
    ([], "no object"),
    ({"label": "a"}, "neither messages"),
    ({"text": 3}, "text is no text"),
    ({"messages": []}, "no list of turns"),
    ({"messages": "hello"}, "no list of turns"),
    ({"messages": [USER, {"role": "assistant"}]}, "not role and content"),
    ({"messages": [USER, {**ANSWER, "weight": 1}]}, "not role and content"),
    ({"messages": [USER, {"role": "bot", "content": "x"}]}, "unknown role"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "content that is no text"),
    ({"messages": [USER, SYSTEM, ANSWER]}, "system turn that is not the first"),
    ({"messages": [SYSTEM]}, "a system turn alone"),
    ({"messages": [ANSWER, USER]}, "do not alternate"),
    ({"messages": [USER, USER, ANSWER]}, "do not alternate"),
    ({"messages": [USER, ANSWER, USER]}, "do not end with an answer"),
    ({"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [ANSWER]}, "prompt does not end with a user turn"),
    ({"prompt": [USER], "chosen": [USER], "rejected": [ANSWER]}, "turns of chosen do not alternate"),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [SYSTEM, ANSWER]}, "rejected has a system turn"),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "say the same"),
    ({"chosen": [ANSWER], "rejected": [ANSWER]}, "prompt is no list of turns"),
]


@pytest.mark.parametrize(("content", "said"), FAULTS, ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "row")
def test_every_fault_is_told(content: Any, said: str) -> None:
    assert said in fault_of(content)


def test_planted_faults_are_found() -> None:
    """40 rows of each of 3 faults among 1,000: recall 1, precision 1; the rows are named, and no other check stumbles over them."""
    rows = clean_rows()
    planted = [{"messages": [ANSWER, USER]}, {"messages": [USER, ANSWER, USER]}, {"messages": [USER, {"role": "bot", "content": "x"}]}]
    for number in range(120):
        rows[number * 8] = replace(rows[number * 8], content=planted[number % 3])
    found = check(rows)
    assert [(finding.severity, finding.check, finding.count) for finding in found] == [("error", "schema", 40)] * 3
    told = one(found, holding="do not alternate")
    assert told.examples == [f"rows.jsonl:{number * 8 + 1}" for number in (0, 3, 6, 9, 12)]


def test_rows_of_several_kinds_are_an_error() -> None:
    finding = one(check([*clean_rows(num_rows=50), *clean_rows("text", 5)], only=["schema"]), holding="several kinds")
    assert finding.severity == "error" and finding.count == 5 and "50 of messages" in finding.message


def test_a_field_in_two_forms_is_a_warning() -> None:
    rows = [Row({"text": f"Text {number}.", "label": number if number % 25 == 0 else str(number), "none": None}, f"rows:{number}") for number in range(1000)]
    (finding,) = check(rows, only=["schema"])
    assert finding.severity == "warning" and finding.count == 40 and "label is number" in finding.message
