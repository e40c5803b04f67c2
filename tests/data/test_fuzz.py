"""150 broken files of every kind: an error with file and place, or a counted skip; never a traceback, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data import fuzz_files


def test_broken_files_are_told_or_skipped() -> None:
    """Proves SYS-D-021: whatever stands in a file is looked at before it is used. `python -m tests.data.fuzz_files 1000` makes more of them."""
    found = fuzz_files.fuzz(150)
    assert sum(found.values()) == 150
    assert found["error"] >= 15 and found["skip"] >= 30 and found["clean"] >= 5  # broken in every degree


def test_the_files_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first, again, other = (fuzz_files.make(3, tmp_path / name, seed=seed).read_bytes() for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == again != other


def test_it_finds_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that raises, and one that loses the place, are both seen."""
    monkeypatch.setattr(fuzz_files, "_chat", lambda path: 1 // 0)
    with pytest.raises(AssertionError, match=r"file 0 \(rows.jsonl\) of seed 0: ZeroDivisionError"):
        fuzz_files.fuzz(1)


def test_an_arrow_file_whose_lengths_lead_outside_is_told() -> None:
    """File 196 has such lengths: pyarrow opens it, and would hand on what lies beside the text."""
    assert fuzz_files.fuzz(1, only=196)["error"] == 1
