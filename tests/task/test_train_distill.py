"""Distillation through the real entry point: a nano learns from one that has learnt, in every mode; and stopped, it goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from largeforge.config.compose import compose
from largeforge.run import execute
from tests.data.tiny import write_jsonl
from tests.task.conftest import chat_rows
from tests.task.test_resume_stops import Stop, artifact_id

Go = Callable[..., tuple[int, dict[str, Any]]]
SMALL = ["model.shape.num_hidden_layers=2", "model.shape.hidden_size=64", "model.shape.intermediate_size=128"]


@pytest.fixture(scope="module")
def teacher(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano that knows the rows, made once; the rows stand beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    write_jsonl(folder / "rows.jsonl", chat_rows(24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LARGEFORGE_CACHE", str(model_cache))
        patch.chdir(folder)
        words = ["task=sft", "model=nano", "adapter=none", "data=chat", "data.path=rows.jsonl", "data.max_length=64", "trainer=cpu", "trainer.precision=fp32"]
        assert execute(compose([*words, "tracker=none", "trainer.epochs=12", "trainer.batch_size=8", "method.learning_rate=3e-3", "folder=run"])) == 0
    return folder


@pytest.fixture
def go(teacher: Path, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Distil into a smaller nano; returns the exit code and the metrics."""
    monkeypatch.setenv("LARGEFORGE_CACHE", str(model_cache))
    monkeypatch.chdir(tmp_path)

    def run(folder: str, *words: str) -> tuple[int, dict[str, Any]]:
        rows = ["data=chat", f"data.path={teacher / 'rows.jsonl'}", "data.max_length=64", "trainer.batch_size=6", "trainer.micro_batch_size=3"]
        common = ["task=distill", "model=nano", *SMALL, f"teacher={teacher / 'run' / 'artifact'}", *rows, "trainer=cpu", "trainer.precision=fp32"]
        code = execute(compose([*common, "tracker=none", f"folder={folder}", *words]))
        result = tmp_path / folder / "result.json"
        return code, json.loads(result.read_text(encoding="utf-8"))["metrics"] if result.is_file() else {}

    return run


def test_a_student_learns_what_its_teacher_says(go: Go, teacher: Path, tmp_path: Path) -> None:
    """Proves SR-F-005: from the teacher's distribution alone, it comes to hold the rows' answers for likely; its parents are both models and the rows."""
    rows = f"data.validation={teacher / 'rows.jsonl'}"
    words = ["method.nll_weight=0", "trainer.epochs=8", "method.learning_rate=3e-3", rows, "trainer.validate_first=true"]
    code, metrics = go("run", *words)
    assert code == 0
    assert metrics["validation_loss"] < 0.5 * metrics["validation_loss_before"]
    assert metrics["validation_nll"] < 0.5 * metrics["validation_nll_before"]
    manifest = json.loads((tmp_path / "run" / "artifact" / "manifest.json").read_text())
    known = json.loads((teacher / "run" / "artifact" / "manifest.json").read_text())["id"]
    assert manifest["kind"] == "model" and known in json.dumps(manifest["parents"])
    assert not any("projection" in name for name in manifest["files"])


def test_a_teacher_asked_once_gives_the_run_of_one_that_is_asked(go: Go, tmp_path: Path) -> None:
    """All 4,096 tokens kept: the same losses to rounding. A second run finds what the first one asked."""
    found = []
    for folder, words in (("online", []), ("cached", ["method.teacher_logits=cached", "method.top_k=4096"])):
        code, metrics = go(folder, "trainer.max_steps=3", "data.packing=true", "method.temperature=2", *words)
        assert code == 0
        found.append([metrics["loss_first"], metrics["loss"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


OWN = ["method.on_policy.share=0.95", "method.on_policy.max_tokens=4", "method.divergence=jsd"]
GROWING = ["method.hidden.weight=0.5", "method.progressive.growth=layers", "adapter=lora", "adapter.dropout=0.2"]


@pytest.mark.parametrize("mode", [OWN, GROWING, ["method.teacher_logits=cached", "method.top_k=8"]])
def test_a_stopped_run_goes_on_exactly(go: Go, mode: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own answers, learned projections over two stages, kept logits: the artifact of a run that was never stopped."""
    words = [*mode, "trainer.max_steps=6", "trainer.checkpoint.every_steps=2"]
    assert go("whole", *words)[0] == 0
    with monkeypatch.context() as patch:
        Stop(patch, where="step", step=3)
        assert go("stopped", *words)[0] == 143
    assert go("stopped", *words, "resume=auto")[0] == 0
    assert artifact_id(tmp_path / "stopped") == artifact_id(tmp_path / "whole")
