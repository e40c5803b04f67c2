"""Steps that need somebody, and steps that move rows, as `task=prepare` runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from largeforge.__main__ import main
from tests.data.tiny import exchange, write_jsonl


def test_a_teacher_is_asked_and_rows_are_put_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Augment with an engine that says what it was asked, then order by length: every row and its copy, shortest first, with their lineage."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [exchange(f"What is {'very ' * (7 - n)}number {n}?", str(n)) for n in range(8)])
    argv = [
        "task=prepare",
        "data.path=rows.jsonl",
        "steps=[augment,order]",
        "engine=echo",
        "check=none",
        "folder=out",
        "shard_rows=3",
        "step.augment.share=0.5",
    ]
    assert main(argv) == 0
    artifact = tmp_path / "out" / "artifact"
    rows = [json.loads(line) for line in (artifact / "rows" / "train-00000.jsonl").read_text(encoding="utf-8").splitlines()]
    lineage = [json.loads(line) for line in (artifact / "about" / "lineage" / "train-00000.jsonl").read_text(encoding="utf-8").splitlines()]
    lengths = [sum(len(turn["content"]) for turn in row["messages"]) for row in rows]
    assert lengths == sorted(lengths)
    copies = [fact for fact in lineage if "from" in fact]
    assert len(rows) == len(lineage) == 8 + len(copies)
    assert 1 <= len(copies) <= 7
    assert {fact["teacher"] for fact in copies} == {"echo"}
    assert {fact["from"] for fact in copies} <= {fact["id"] for fact in lineage if "from" not in fact}
