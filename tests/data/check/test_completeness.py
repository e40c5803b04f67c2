"""Texts that say nothing, answers that were cut off, fields that some rows lack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from largeforge.data.rows import Row
from tests.data.check.clean import check, clean_rows, numbers, one

ONLY: dict[str, Any] = {"only": ["completeness"], "examples": 1000}


def answered(row: Row, answer: str) -> Row:
    return replace(row, content={**row.content, "messages": [*row.content["messages"][:-1], {"role": "assistant", "content": answer}]})


def test_planted_placeholders_and_empty_texts_are_found() -> None:
    """40 placeholders of 8 forms and 40 empty answers among 1,000: recall 1, precision 1."""
    rows = clean_rows()
    forms = ["N/A", "TODO", "todo.", "[placeholder]", "...", "<Your answer here>", "Well, lorem ipsum dolor sit amet.", "**null**"]
    for number in range(40):
        rows[number * 20] = answered(rows[number * 20], forms[number % len(forms)])
        rows[number * 20 + 7] = answered(rows[number * 20 + 7], " \n")
    found = check(rows, **ONLY)
    placeholders, empty = one(found, holding="placeholder"), one(found, holding="empty text")
    assert (placeholders.severity, placeholders.count, numbers(placeholders)) == ("warning", 40, {number * 20 for number in range(40)})
    assert (empty.severity, empty.count, numbers(empty)) == ("error", 40, {number * 20 + 7 for number in range(40)})
    assert len(found) == 2


def test_words_that_a_placeholder_is_part_of_are_none() -> None:
    said = ["None of them came.", "My todo list is long.", "The null hypothesis.", "Nan is a bread? No: naan.", "A placeholder stands for a value."]
    rows = [answered(row, said[number % len(said)]) for number, row in enumerate(clean_rows(num_rows=50))]
    assert check(rows, **ONLY) == []


def test_planted_cut_answers_are_found() -> None:
    """40 answers cut within a sentence among 1,000, of which those of 80 characters and more count: recall 1, precision 1."""
    rows = clean_rows()
    for number in range(0, 1000, 25):
        answer = rows[number].content["messages"][-1]["content"]
        rows[number] = answered(rows[number], (answer + " " + answer)[:100].rstrip(" ,.") + "x")
    (finding,) = check(rows, **ONLY)
    assert (finding.severity, finding.count, numbers(finding)) == ("warning", 40, set(range(0, 1000, 25)))


def test_answers_that_never_end_in_a_mark_are_not_cut() -> None:
    rows = [answered(row, "one two three four five six seven eight nine ten " * 3 + "eleven") for row in clean_rows(num_rows=200)]
    assert check(rows, **ONLY) == []


def test_planted_missing_fields_are_found() -> None:
    """A field that 960 of 1,000 rows have is missed in 40 (absent, null or empty); one that half of the rows have is not."""
    rows = clean_rows()
    for number in range(0, 1000, 25):
        content = dict(rows[number].content)
        content["label"] = ["", None][number % 2]
        if number % 3 == 0:
            del content["label"]
        rows[number] = replace(rows[number], content=content)
    rows = [replace(row, content={**row.content, "note": "x"}) if number % 2 else row for number, row in enumerate(rows)]
    (finding,) = check(rows, **ONLY)
    assert (finding.severity, finding.count, numbers(finding)) == ("warning", 40, set(range(0, 1000, 25)))
    assert "label" in finding.message
