"""step.split: the shares asked for, the same rows in every order, questions kept together."""

from __future__ import annotations

from collections import Counter

import pytest

from largeforge.data.rows import Row
from largeforge.data.step.config import SplitConfig
from largeforge.data.step.split import Split
from largeforge.errors import InputError
from tests.data.making import contents, row


def step(validation: float = 0.1, test: float = 0.2, salt: str = "", keep_together: str = "prompt") -> Split:
    return Split(SplitConfig(_target_="", validation=validation, test=test, salt=salt, keep_together=keep_together))  # type: ignore[arg-type]


def splits(one: Split, rows: list[Row]) -> dict[str, str]:
    return {item.id: item.split for item in one(rows) if isinstance(item, Row)}


ROWS = [Row(content, str(number)) for number, content in enumerate(contents(3000))]


def test_shares() -> None:
    """Within three standard deviations of 3,000 draws."""
    counts = Counter(splits(step(), ROWS).values())
    assert sum(counts.values()) == 3000
    assert abs(counts["test"] - 600) < 66
    assert abs(counts["validation"] - 300) < 50


def test_the_order_and_the_other_rows_do_not_matter() -> None:
    whole = splits(step(), ROWS)
    assert splits(step(), list(reversed(ROWS))) == whole
    assert splits(step(), ROWS[::7]) == {one.id: whole[one.id] for one in ROWS[::7]}


def test_a_hash_that_is_the_same_on_every_machine() -> None:
    assert [step().split_of(f"key {number}".encode()) for number in range(8)] == ["train", "test", "train", "train", "train", "train", "train", "train"]


def test_the_salt_moves_rows() -> None:
    assert splits(step(salt="other"), ROWS) != splits(step(), ROWS)


def test_rows_of_one_question_stay_together() -> None:
    rows = [row(f"question {number % 50}", f"answer {number}") for number in range(500)]
    where: dict[str, set[str]] = {}
    for item in step()(rows):
        assert isinstance(item, Row)
        where.setdefault(next(item.texts()), set()).add(item.split)
    assert all(len(found) == 1 for found in where.values())
    by_row = {item.split for item in step(keep_together="row")(rows) if isinstance(item, Row) and next(item.texts()) == "question 1"}
    assert len(by_row) > 1


def test_nothing_is_set_aside_where_nothing_is_asked() -> None:
    assert set(splits(step(validation=0.0, test=0.0), ROWS).values()) == {"train"}


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="leave nothing to train on"):
        step(validation=0.5, test=0.5).ready()
