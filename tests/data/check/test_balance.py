"""How rows are spread over classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from largeforge.data.check.standard import Standard
from largeforge.data.rows import Row
from tests.data.check.clean import check, clean_rows, config, one

ONLY: dict[str, Any] = {"only": ["balance"]}


def labelled(counts: dict[str, int], field: str = "label") -> list[Row]:
    values = [value for value, count in counts.items() for _ in range(count)]
    return [Row({"text": f"Text {number}.", field: value}, f"rows:{number}", split=["train", "test"][number % 10 == 0]) for number, value in enumerate(values)]


def test_planted_imbalance_is_found() -> None:
    """A class of 40 rows beside one of 960 is told; at 10 times as many, the limit, nothing is."""
    (finding,) = check(labelled({"common": 960, "rare": 40}), **ONLY)
    assert (finding.severity, finding.count) == ("warning", 40) and "24.0 times" in finding.message
    assert finding.examples[0] == "rows:960"
    assert check(labelled({"common": 910, "rare": 91}), **ONLY) == []


def test_planted_small_classes_are_found() -> None:
    """5 classes of 8 rows among 5 of 192: each is counted, whatever the field is called."""
    counts = {f"large{number}": 192 for number in range(5)} | {f"small{number}": 8 for number in range(5)}
    for field in ("category", "language"):
        finding = one(check(labelled(counts, field), **ONLY), holding="fewer than 20 rows")
        assert finding.count == 5 and "small0 (8)" in finding.message and field in finding.message
    assert check(labelled(counts, "note"), **ONLY) == []


def test_a_class_that_training_never_sees_is_found() -> None:
    rows = clean_rows()
    rows = [replace(row, content={**row.content, "label": "unseen"}) if row.split == "test" and number % 4 == 0 else row for number, row in enumerate(rows)]
    finding = one(check(rows, **ONLY), holding="never in train")
    assert finding.count == 1 and "unseen" in finding.message


def test_a_field_of_many_values_names_no_class() -> None:
    """Merged from parts of which none alone has too many values, or whose others have; what follows with few values changes nothing."""
    rows = [Row({"text": f"Text {number}.", "source": f"page {number}"}, f"rows:{number}") for number in range(1000)]
    few = [Row({"text": "Text.", "source": ["a", "b"][number % 10 == 0]}, f"few:{number}") for number in range(300)]
    for cut in (100, 300):
        standard = Standard(config(**ONLY, balance={"max_ratio": 2.0}))
        for begin in range(0, 1000, cut):
            standard.merge(standard.fresh().look(rows[begin : begin + cut]))
        standard.merge(standard.fresh().look(few))
        assert standard.findings() == []


def test_fields_of_ones_own() -> None:
    found = check(labelled({"a": 990, "b": 10}, "mood"), **ONLY, balance={"fields": ["mood"], "min_rows": 0, "max_ratio": 50.0})
    assert len(found) == 1 and "mood: a has 990 rows, b 10" in found[0].message
