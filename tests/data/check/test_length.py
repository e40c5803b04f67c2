"""How long rows are."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from largeforge.data.check.standard import Standard
from largeforge.data.rows import Row
from tests.data.check.clean import check, config, numbers, one

ONLY: dict[str, Any] = {"only": ["length"], "examples": 1000}


def of_lengths(lengths: list[int]) -> list[Row]:
    return [Row({"text": "x" * length}, f"rows.jsonl:{number}", split=["train", "test"][number % 2]) for number, length in enumerate(lengths, start=1)]


def spread(count: int, *, seed: int = 0) -> list[int]:
    """Lengths as those of talks are: log-normal around 500 characters."""
    draw = random.Random(seed)
    return [round(math.exp(draw.gauss(math.log(500), 0.6))) for _ in range(count)]


def test_planted_outliers_are_found() -> None:
    """40 rows of 2 to 6 characters and 40 of 50,000 and more among 1,000 of log-normal length: recall 1, precision 1."""
    lengths = spread(1000)
    short, long = set(range(0, 1000, 25)), set(range(7, 1000, 25))
    for number in short:
        lengths[number] = 2 + number % 5
    for number in long:
        lengths[number] = 50_000 + number
    found = check(of_lengths(lengths), **ONLY)
    for finding, planted in ((one(found, holding="shorter"), short), (one(found, holding="longer"), long)):
        assert (finding.severity, finding.count, numbers(finding)) == ("warning", 40, planted)
    assert len(found) == 2


def test_planted_rows_past_the_limit_are_found() -> None:
    """40 rows of more than 2,000 characters among 1,000: recall 1, precision 1; one of exactly 2,000 is within."""
    lengths = [min(length, 1900) for length in spread(1000)]
    for number in range(40):
        lengths[number * 20] = 2001
    lengths[1] = 2000
    (finding,) = check(of_lengths(lengths), only=["length"], examples=1000, length={"max_characters": 2000})
    assert finding.count == 40 and numbers(finding) == {number * 20 for number in range(40)}


@pytest.mark.parametrize("seed", range(5))
def test_natural_spread_holds_no_outliers(seed: int) -> None:
    assert check(of_lengths(spread(2000, seed=seed)), **ONLY) == []
    assert check(of_lengths([40] * 900 + [60] * 100), **ONLY) == []


def test_numbers_are_right_to_two_percent(tmp_path: Path) -> None:
    lengths = spread(1001)
    standard = Standard(config(**ONLY)).look(of_lengths(lengths))
    numbers_told = standard.metrics()
    assert numbers_told["characters"] == sum(lengths)
    assert numbers_told["characters_median"] == pytest.approx(sorted(lengths)[500], rel=0.02)
    table = {str(name): value for name, value in standard.sections(tmp_path)[0].rows}
    assert table["shortest"] == min(lengths) and table["longest"] == max(lengths)
    assert table["99%"] == pytest.approx(sorted(lengths)[991], rel=0.03)
    assert (tmp_path / "check_length.png").is_file()
