"""The generator template: distinct rows, and how many there are where they do not suffice."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.build import build
from largeforge.data.rows import Row
from largeforge.errors import InputError
from tests.data.generator.scripted import config, parted

FEW = "name: few\ndescription: x\nslots: {a: {type: int, min: 1, max: 40}}\ntemplates: [{id: x, text: 'the number {{ a // 2 }}'}]\n"


def made(text: str, folder: Path, *, seed: int = 0, **changes: object) -> tuple[list[Row], int]:
    path = folder / "set.yaml"
    path.write_text(text, encoding="utf-8")
    rows, rejected = parted(build(config("template", templates=str(path), **changes), seed=seed, now=lambda: "2026-11-22T00:00:00+00:00"))
    return rows, len(rejected)


def test_rows_are_distinct(tmp_path: Path) -> None:
    """21 rows are all there are (0 to 20): asked for all of them, repeats are skipped until each was drawn."""
    rows, repeats = made(FEW, tmp_path, num_rows=21)
    assert sorted(row.content["text"] for row in rows) == sorted(f"the number {number}" for number in range(21))
    assert repeats > 0
    assert {row.lineage["time"] for row in rows} == {"2026-11-22T00:00:00+00:00"}


@pytest.mark.parametrize("wanted", [22, 40, 41, 1000])
def test_says_how_many_there_are(tmp_path: Path, wanted: int) -> None:
    """40 ways to fill the slot make 21 rows: both below and above 40 the exact number is told, and nothing loops."""
    with pytest.raises(InputError, match="has 21 distinct rows") as error:
        made(FEW, tmp_path, num_rows=wanted)
    assert "generator.num_rows=21" in error.value.next_step


def test_the_seed_decides(tmp_path: Path) -> None:
    """The same seed gives the same rows, fewer rows are the first of more, another seed gives others."""
    first, _ = made(FEW, tmp_path, num_rows=10)
    assert [row.id for row in made(FEW, tmp_path, num_rows=6)[0]] == [row.id for row in first[:6]]
    assert [row.id for row in made(FEW, tmp_path, num_rows=10, seed=1)[0]] != [row.id for row in first]


def test_similar_questions_are_left_out(tmp_path: Path) -> None:
    """Proves SYS-F-006: at 0.7 nothing but the first of texts that differ in one word of eleven stays; at 1.0 all do."""
    head = "name: near\ndescription: x\nslots: {a: {type: int, min: 1, max: 9}}\n"
    text = head + "templates: [{id: x, text: 'one two three four five six seven eight nine ten {{ a }}'}]\n"
    with pytest.raises(InputError, match="gave 1 rows that pass"):
        made(text, tmp_path, num_rows=2, similarity=0.7)
    assert len(made(text, tmp_path, num_rows=9)[0]) == 9
