"""step.exact_duplicates: the first of each stays, across shards, whatever the range of hashes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from largeforge.data.rows import Dropped, Row
from largeforge.data.step import exact_duplicates
from largeforge.data.step.base import Survey
from largeforge.data.step.config import ExactDuplicatesConfig
from largeforge.data.step.exact_duplicates import ExactDuplicates
from tests.data.making import chat, contents, row


def step(by: str = "row", *, ignore_case: bool = False) -> ExactDuplicates:
    return ExactDuplicates(ExactDuplicatesConfig(_target_="", by=by, ignore_case=ignore_case))  # type: ignore[arg-type]


def over_shards(one: ExactDuplicates, shards: list[list[Row]], folder: Path) -> list[list[Row | Dropped]]:
    """Survey each, decide, apply to each: as a pipeline does."""
    surveys = []
    for number, rows in enumerate(shards):
        place = folder / f"survey-{number}"
        place.mkdir()
        one.survey(iter(rows), place)
        surveys.append(Survey(place, number, len(rows)))
    verdict = folder / "verdict"
    verdict.mkdir()
    one.decide(surveys, verdict, lambda function, tasks: [function(task) for task in tasks])
    return [list(one.apply(iter(rows), number, verdict)) for number, rows in enumerate(shards)]


@pytest.mark.parametrize("range_rows", [7, 500_000])
def test_planted_duplicates_are_found_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_rows: int) -> None:
    """Recall and precision are 1: 40 planted in 240 rows over 4 shards, in one range of hashes and in many."""
    monkeypatch.setattr(exact_duplicates, "RANGE_ROWS", range_rows)
    rng = random.Random(1)
    rows = [Row(content, f"rows.jsonl:{number}") for number, content in enumerate(contents(200))]
    copies = [Row(dict(reversed(one.content.items())), f"copy:{number}") for number, one in enumerate(rng.sample(rows, 40))]
    everything = rows + copies
    rng.shuffle(everything)
    shards = [everything[:60], everything[60:60], everything[60:200], everything[200:]]
    done = over_shards(step(), shards, tmp_path)
    first: dict[str, str] = {}
    for one, item in zip(everything, [item for shard in done for item in shard], strict=True):
        if one.id in first:
            assert isinstance(item, Dropped)
            assert (item.reason, item.detail) == ("duplicate_exact", f"the same as {first[one.id]}")
        else:
            assert item is one
            first[one.id] = one.origin
    assert len(first) == 200


def test_how_rows_were_cut_does_not_matter(tmp_path: Path) -> None:
    rows = [Row(content, str(number)) for number, content in enumerate([*contents(30), *contents(30)])]
    kept = []
    for number, size in enumerate((7, 60)):
        folder = tmp_path / str(number)
        folder.mkdir()
        shards = [rows[start : start + size] for start in range(0, 60, size)]
        kept.append([item.origin for shard in over_shards(step(), shards, folder) for item in shard if isinstance(item, Row)])
    assert kept[0] == kept[1] == [str(number) for number in range(30)]


def test_what_equal_means() -> None:
    same_text = [Row(chat("Hi", "Yes.", label="a"), "1"), Row(chat("Hi", "Yes.", label="b"), "2")]
    same_prompt = [row("Hi", "Yes."), row("Hi", "No.")]
    other_case = [row("Hi"), row("hi")]

    def left(one: ExactDuplicates, rows: list[Row]) -> int:
        return sum(isinstance(item, Row) for item in one(rows))

    assert [left(step(by), same_text) for by in ("row", "text", "prompt")] == [2, 1, 1]
    assert [left(step(by), same_prompt) for by in ("row", "text", "prompt")] == [2, 2, 1]
    assert [left(step(ignore_case=flag), other_case) for flag in (False, True)] == [2, 1]


def test_two_texts_are_not_one_joined_text() -> None:
    assert sum(isinstance(item, Row) for item in step("text")([row("a\n\nb", "c"), row("a", "b\n\nc")])) == 2
