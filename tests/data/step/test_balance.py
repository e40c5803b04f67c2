"""Kinds become equally frequent, by a choice that depends on seed and rows alone; every row that goes is told with the numbers of its kind."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.balance import Balance, file_of
from largeforge.data.step.base import Survey
from largeforge.errors import InputError, RowError
from tests.data.step.made import dropped, kept, make, text

ROWS = [
    text(f"a row about {kind}, number {n}", f"{kind}.jsonl:{n}", label=kind) for kind, count in (("cats", 60), ("dogs", 30), ("owls", 10)) for n in range(count)
]


def labels(rows: list[Row]) -> dict[str, int]:
    return dict(Counter(row.content["label"] for row in rows))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": "undersample"}, {"cats": 10, "dogs": 10, "owls": 10}),
        ({"mode": "oversample"}, {"cats": 60, "dogs": 60, "owls": 60}),
        ({"mode": "oversample", "max_rows": 25}, {"cats": 25, "dogs": 25, "owls": 25}),
        ({"mode": "cap", "max_rows": 25}, {"cats": 25, "dogs": 25, "owls": 10}),
    ],
)
def test_counts_after(changes: dict[str, Any], expected: dict[str, int]) -> None:
    assert labels(kept(make("balance", **changes)(ROWS))) == expected


def test_what_goes_is_told_and_what_stays_is_untouched() -> None:
    items = list(make("balance")(ROWS))
    assert len(items) == len(ROWS)
    assert all(item is row or (isinstance(item, Dropped) and item.row is row) for item, row in zip(items, ROWS, strict=True))
    assert {(item.reason, item.detail) for item in dropped(items)} == {("over_share", "cats: 10 of 60 stay"), ("over_share", "dogs: 10 of 30 stay")}


def test_balanced_rows_lose_nothing() -> None:
    even = [row for row in ROWS if row.content["label"] != "cats" and int(row.origin.rpartition(":")[2]) < 10]
    for mode in ("undersample", "oversample"):
        assert list(make("balance", mode=mode)(even)) == even


def test_the_choice_depends_on_seed_and_rows_not_on_their_order() -> None:
    chosen = {row.id for row in kept(make("balance")(ROWS))}
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert {row.id for row in kept(make("balance")(shuffled))} == chosen
    assert {row.id for row in kept(make("balance", seed=1)(ROWS))} != chosen


def test_copies_are_spread_evenly_and_say_what_they_are() -> None:
    rows = kept(make("balance", mode="oversample")(ROWS))
    owls = Counter(row.origin for row in rows if row.content["label"] == "owls")
    assert set(owls.values()) == {6}
    dogs = Counter(row.origin for row in rows if row.content["label"] == "dogs")
    assert set(dogs.values()) == {2}
    assert [row.lineage for row in rows if row.origin == "owls.jsonl:3"] == [{}, *({"balance_copy": n} for n in range(2, 7))]


def test_equal_rows_are_not_one_row() -> None:
    """Twenty rows that say the same have the same draw; ten of them stay all the same."""
    rows = [*(text("the same", f"a:{n}", label="same") for n in range(20)), *ROWS[-10:]]
    assert labels(kept(make("balance")(rows))) == {"same": 10, "owls": 10}


def test_shards_are_as_good_as_one(tmp_path: Path) -> None:
    """Surveyed in three shards, the same rows stay as in one; balance.json has the numbers before and after."""
    step = make("balance")
    assert isinstance(step, Balance)
    shards = [ROWS[:50], ROWS[50:51], ROWS[51:], []]
    surveys = []
    for number, rows in enumerate(shards):
        folder = tmp_path / str(number)
        folder.mkdir()
        step.survey(rows, folder)
        surveys.append(Survey(folder, number, len(rows)))
    verdict = tmp_path / "verdict"
    verdict.mkdir()
    step.decide(surveys, verdict, lambda function, tasks: [function(task) for task in tasks])
    stay = [row for number, rows in enumerate(shards) for row in kept(step.apply(rows, number, verdict))]
    assert stay == kept(step(ROWS))
    said = json.loads((verdict / "balance.json").read_text(encoding="utf-8"))
    assert said == {"cats": {"after": 10, "before": 60}, "dogs": {"after": 10, "before": 30}, "owls": {"after": 10, "before": 10}}


def test_by_length_and_by_source() -> None:
    rows = [
        *(text("x" * n, f"short.jsonl:{n}") for n in range(1, 9)),
        *(text("y" * n, f"long.parquet row {n}") for n in range(10, 14)),
        text("z" * 500, "long.parquet row 1"),
    ]
    items = list(make("balance", by="length", edges=[10, 100], mode="cap", max_rows=4)(rows))
    assert len(kept(items)) == 4 + 4 + 1
    assert {item.detail for item in dropped(items)} == {"0-9 characters: 4 of 8 stay"}
    assert Counter(file_of(row.origin) for row in kept(make("balance", by="source")(rows))) == {"short.jsonl": 5, "long.parquet": 5}
    assert file_of("template greeting, draw 3") == "template greeting"


def test_rows_without_the_field() -> None:
    rows = [*ROWS, text("no label", "f:1"), text("an empty one", "f:2", label="")]
    assert [row for row in kept(make("balance")(rows)) if "label" not in row.content or not row.content["label"]] == rows[-2:]
    out = [item for item in dropped(make("balance", missing="drop")(rows)) if item.reason == "no_kind"]
    assert [(item.row, item.detail) for item in out] == [(row, "has no label") for row in rows[-2:]]
    with pytest.raises(RowError, match="f:1  label: is missing"):
        list(make("balance", missing="error")(rows))


def test_rows_set_aside_are_neither_counted_nor_touched() -> None:
    aside = [replace(row, split="test") for row in ROWS[:40]]
    items = list(make("balance", missing="drop")([*aside, *ROWS[40:]]))
    assert items[:40] == aside
    assert labels([row for row in kept(items) if row.split == "train"]) == {"cats": 10, "dogs": 10, "owls": 10}


def test_values_of_any_type_are_kinds() -> None:
    rows = [text(f"row {n}", label=value) for n, value in enumerate([1, 1, 1, True, True, ["a"], ["a"], 0, 0])]
    assert Counter(str(row.content["label"]) for row in kept(make("balance")(rows))) == {"1": 2, "True": 2, "['a']": 2, "0": 2}


@pytest.mark.parametrize(("changes", "said"), [({"mode": "cap"}, "how many rows"), ({"by": "length", "edges": [100, 10]}, "must rise")])
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make("balance", **changes)
