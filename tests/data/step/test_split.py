"""step.split: the shares asked for, the same rows in every order, questions kept together."""

from __future__ import annotations

from collections import Counter

import pytest

from largeforge.data.rows import Row
from largeforge.data.step.config import SplitConfig
from largeforge.data.step.split import Split, least_of_group
from largeforge.errors import InputError
from tests.data.making import contents, row


def step(validation: float = 0.1, test: float = 0.2, salt: str = "", keep_together: str = "prompt") -> Split:
    return Split(SplitConfig(_target_="", validation=validation, test=test, salt=salt, keep_together=keep_together, similarity=0.8))  # type: ignore[arg-type]


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
    found = [step().split_of(step().key(row(f"question {number}")))[:2] for number in range(8)]
    assert found == ["te", "tr", "tr", "tr", "tr", "tr", "tr", "te"]


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


def near_rows() -> list[Row]:
    """300 rows in 100 groups: each said three times, with one word of forty changed, and other answers to questions in another case."""
    rows = []
    for number, content in enumerate(contents(100)):
        words = f"{content['messages'][0]['content']} " + " ".join(f"word{number}x{place}" for place in range(40))
        for copy in range(3):
            said = words if copy == 0 else words.replace("x39", f"x39and{copy}")
            rows.append(row(said, f"The same long answer of row {number}.", origin=f"{number} {copy}"))
    return rows


def test_near_rows_stay_together_and_lone_rows_where_they_were() -> None:
    rows = near_rows()
    where: dict[str, set[str]] = {}
    for item in step(0.3, 0.3, keep_together="near")(rows):
        assert isinstance(item, Row)
        where.setdefault(item.origin.split()[0], set()).add(item.split)
    assert all(len(found) == 1 for found in where.values())
    apart: dict[str, set[str]] = {}
    for item in step(0.3, 0.3)(rows):
        assert isinstance(item, Row)
        apart.setdefault(item.origin.split()[0], set()).add(item.split)
    assert sum(len(found) > 1 for found in apart.values()) > 30  # by their questions alone they would leak
    assert splits(step(keep_together="near"), ROWS[:200]) == splits(step(), ROWS[:200])


def test_groups_do_not_depend_on_the_order() -> None:
    rows = near_rows()
    assert splits(step(keep_together="near"), rows) == splits(step(keep_together="near"), list(reversed(rows)))


def test_one_question_in_other_clothes_is_one_question() -> None:
    for together in ("prompt", "near"):
        found = {
            item.split
            for item in step(0.3, 0.3, keep_together=together)([row(q, f"{q} {q}") for q in ("Why me?", "why me", "WHY  ME!")])
            if isinstance(item, Row)
        }
        assert len(found) == 1


def test_chains_of_both_kinds_hang_together() -> None:
    """a and b have one question, b and c are near: all go where the least says."""
    import numpy as np

    keys = np.array([5, 5, 3, 9], dtype=np.uint64)
    near = np.array([0, 1, 1, 3], dtype=np.int64)
    assert least_of_group(keys, near).tolist() == [3, 3, 3, 9]
