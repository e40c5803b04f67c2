"""task=reproduce: the same bits again, or what drifted, told before a weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge.__main__ import main
from tests.task.conftest import Runner, chat_rows


@pytest.fixture
def original(train: Runner, tmp_path: Path) -> Path:
    code, _ = train("run", "trainer.max_steps=2", "tracker=none", "seed=3")
    assert code == 0
    return tmp_path / "run"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads weights fails."""

    def fail(*arguments: Any, **named: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("largeforge.model.base.read_network", fail)


def edited(run: Path, change: Any) -> Path:
    """The lock with something else in it, where no original stands beside it."""
    lock = yaml.safe_load((run / "recipe.lock.yaml").read_text())
    change(lock)
    place = run.parent / "edited.yaml"
    place.write_text(yaml.safe_dump(lock, sort_keys=False))
    return place


def test_the_same_bits_again(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run again, from its folder: the same artifact id and the same losses, in a run that leaves what any run leaves."""
    capsys.readouterr()
    assert main(["task=reproduce", f"lock={original}", "folder=again"]) == 0
    said = capsys.readouterr().err
    ids = [json.loads((folder / "artifact" / "manifest.json").read_text())["id"] for folder in (original, tmp_path / "again" / "run")]
    assert ids[0] == ids[1] and f"Same bits: artifact {ids[0][:12]}" in said
    result = json.loads((tmp_path / "again" / "run" / "result.json").read_text())
    assert result["task"] == "sft" and (tmp_path / "again" / "run" / "recipe.lock.yaml").is_file()
    assert json.loads((tmp_path / "again" / "result.json").read_text())["metrics"]["same_bits"] == 1.0


def test_another_result_is_told(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the original measured was edited: the first step that differs is named, and the exit code is 4."""
    path = original / "metrics.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    record["loss"] += 1e-6
    path.write_text("\n".join([lines[0], json.dumps(record)]) + "\n")
    assert main(["task=reproduce", f"lock={original}", "folder=again"]) == 4
    assert "loss first differs at step 2" in capsys.readouterr().err


def set_package(lock: dict[str, Any]) -> None:
    lock["packages"]["torch"] = "1.0.0"


def set_template(lock: dict[str, Any]) -> None:
    lock["template_sha256"] = "0" * 64


def set_precision(lock: dict[str, Any]) -> None:
    lock["facts"]["precision"] = "bf16"


def set_model(lock: dict[str, Any]) -> None:
    lock["sources"][0]["sha256"] = "0" * 64


def set_processor(lock: dict[str, Any]) -> None:
    lock["processor"]["instructions"] = ["amx_bf16"]


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        (set_package, "package", "torch"),
        (set_template, "template", "chat template"),
        (set_precision, "precision", "precision"),
        (set_model, "model", "model nano"),
        (set_processor, "machine", "instructions"),
    ],
)
def test_what_drifted_is_told_before_weights(
    original: Path, tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str], change: Any, kind: str, what: str
) -> None:
    capsys.readouterr()
    assert main(["task=reproduce", f"lock={edited(original, change)}", "folder=again"]) == 4
    said = capsys.readouterr().err
    assert what in said and f"allow=[{kind}]" in said.replace("'", "")
    assert [json.loads(line)["kind"] for line in (tmp_path / "again" / "drift.jsonl").read_text().splitlines()] == [kind]
    assert not (tmp_path / "again" / "run").exists()


def test_changed_rows_are_told_before_weights(original: Path, rows_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows_path.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(25)))
    assert main(["task=reproduce", f"lock={original}", "folder=again"]) == 4
    assert "allow=[data]" in capsys.readouterr().err.replace("'", "")


def test_drift_that_is_allowed_runs(original: Path, tmp_path: Path) -> None:
    place = edited(original, set_package)
    assert main(["task=reproduce", f"lock={place}", "folder=checked", "allow=[package]", "run=false"]) == 0
    assert not (tmp_path / "checked" / "run").exists()
    assert main(["task=reproduce", f"lock={place}", "folder=again", "allow=[package]"]) == 0
    assert (tmp_path / "again" / "run" / "artifact" / "manifest.json").is_file()


def test_what_reads_the_config_cannot_change_the_result(original: Path) -> None:
    place = edited(original, lambda lock: lock["packages"].update({"hydra-core": "1.0.0"}))
    assert main(["task=reproduce", f"lock={place}", "folder=again", "run=false"]) == 0


def hostile_task(lock: dict[str, Any]) -> None:
    lock["config"]["task"]["_target_"] = "os.system"


def hostile_model(lock: dict[str, Any]) -> None:
    lock["config"]["model"]["_target_"] = "evil.model.file.Model"
    lock["config"]["trust"] = ["evil"]


def extra_key(lock: dict[str, Any]) -> None:
    lock["config"]["trainer"]["strange"] = 1


def wrong_value(lock: dict[str, Any]) -> None:
    lock["config"]["trainer"]["batch_size"] = -1


@pytest.mark.parametrize(
    ("change", "key"),
    [(hostile_task, "os.system"), (hostile_model, "evil"), (extra_key, "trainer.strange"), (wrong_value, "trainer.batch_size")],
)
def test_a_lock_from_elsewhere_is_checked(original: Path, no_weights: None, capsys: pytest.CaptureFixture[str], change: Any, key: str) -> None:
    """Law 4: targets outside LargeForge are refused, and a lock cannot trust for the user."""
    place = edited(original, change)
    assert main(["task=reproduce", f"lock={place}", "folder=again"]) == 2
    said = capsys.readouterr().err
    assert key in said and str(place.name) in said and "fault" not in said


def test_a_masked_secret_is_asked_for(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = edited(original, lambda lock: lock["config"]["engine"].update({"api_key": "**********"}))
    assert main(["task=reproduce", f"lock={place}", "folder=again"]) == 2
    assert "LARGEFORGE_ENGINE__API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "!!python/object/apply:os.system [ls]\n", "lock_version: 1\n"])
def test_what_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    assert main(["task=reproduce", "lock=x.yaml", "folder=again"]) == 2
    assert main(["task=reproduce", "lock=nowhere.yaml", "folder=again2"]) == 2
