"""How good rows look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from largeforge.data.check.standard import Standard
from tests.data.check.clean import check, clean_rows, config, numbers

ONLY: dict[str, Any] = {"only": ["quality"], "examples": 1000}


def test_planted_poor_rows_are_found() -> None:
    """150 rows of one word again and again among 1,000: recall 1, precision 1; a threshold above their share is obeyed. Proves SYS-F-003."""
    rows = clean_rows("text")
    poor = set(range(0, 1000, 7))
    rows = [replace(row, content={"text": "word " * 80}) if number in poor else row for number, row in enumerate(rows)]
    (finding,) = check(rows, **ONLY)
    assert (finding.severity, finding.count, numbers(finding)) == ("warning", len(poor), poor)
    assert check(rows, **ONLY, quality={"max_low_share": 0.2}) == []
    assert check(rows, **ONLY, quality={"low": 0.0}) == []


def test_the_distribution_is_told(tmp_path: Path) -> None:
    standard = Standard(config(**ONLY)).look(clean_rows(num_rows=200))
    assert standard.findings() == []
    assert standard.metrics()["quality_mean"] > 0.6
    section = standard.sections(tmp_path)[0]
    assert section.title == "Quality" and (tmp_path / section.pictures[0]).is_file()


def test_a_sample_gives_the_share_of_all_rows() -> None:
    """Of 1,000 rows with 20 % poor ones, 300 are scored: 20 % of these are poor, give or take 7, whatever the order of the rows."""
    rows = [replace(row, content={"text": "word " * 80 + str(number)}) if number % 5 == 0 else row for number, row in enumerate(clean_rows("text"))]
    told = [check(order, **ONLY, quality={"sample": 300})[0] for order in (rows, rows[::-1])]
    assert told[0].message == told[1].message and sorted(told[0].examples) == sorted(told[1].examples)
    assert 39 <= told[0].count <= 81 and all(number % 5 == 0 for number in numbers(told[0]))
    assert "rows looked at" in told[0].message
