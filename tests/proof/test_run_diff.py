"""task=diff of runs: what differs, ranked by how likely it explains another result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge.__main__ import main
from largeforge.proof.run_diff import IDLES, MATTERS, RESULTS, RunComparison


def leave(folder: Path, *, losses: tuple[float, ...] = (2.0, 1.0), seed: int = 0, **other: Any) -> Path:
    """Write what a run leaves."""
    folder.mkdir()
    config = {
        "task": {"_target_": "largeforge.task.train.Train"},
        "seed": seed,
        "name": other.get("name"),
        "method": {"learning_rate": other.get("rate", 1e-3)},
    }
    sources = [{"kind": "data", "name": "rows", "sha256": other.get("data", "d" * 64)}]
    lock = {"task": "sft", "template_sha256": "t" * 64, "sources": sources, "facts": {}, "packages": {"torch": other.get("torch", "2.0")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "recipe.lock.yaml").write_text(yaml.safe_dump(lock))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": loss, "tokens_per_s": n * 7.0}) + "\n" for n, loss in enumerate(losses, 1)))
    (folder / "result.json").write_text(json.dumps({"task": "sft", "metrics": {"loss": losses[-1], "tokens_per_s": losses[0] * seed}}))
    return folder


def test_the_likeliest_cause_comes_first(tmp_path: Path) -> None:
    a = leave(tmp_path / "a")
    b = leave(tmp_path / "b", losses=(2.0, 1.5), seed=1, name="other", rate=2e-3, data="e" * 64, torch="2.1")
    lines = list(RunComparison(a, b).lines())
    assert [(line["what"], line["key"]) for line in lines] == [
        (MATTERS, "source.data"),
        (MATTERS, "method.learning_rate"),
        (MATTERS, "seed"),
        (MATTERS, "package.torch"),
        (IDLES, "name"),
        (RESULTS, "loss, first at step 2"),
        (RESULTS, "loss"),
    ]
    assert (lines[5]["a"], lines[5]["b"]) == (1.0, 1.5)


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    assert list(RunComparison(leave(tmp_path / "a"), leave(tmp_path / "b")).lines()) == []


def test_diff_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = leave(tmp_path / "a"), leave(tmp_path / "b", losses=(2.5, 1.0), seed=1)
    assert main(["task=diff", f"a={a}", f"b={b}", "folder=d"]) == 0
    said = capsys.readouterr().out
    assert "seed" in said and "first at step 1" in said
    assert [json.loads(line)["key"] for line in Path("d/diff.jsonl").read_text().splitlines()] == ["seed", "loss, first at step 1"]
    assert json.loads(Path("d/result.json").read_text())["metrics"] == {"differing_decisive": 1.0, "differing_idle": 0.0, "differing_results": 1.0}
