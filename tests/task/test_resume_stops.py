"""Runs that are stopped where it hurts, and go on: at a validation, in it, after the end of early stopping, twice, in another recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from largeforge.method.base import Method
from largeforge.run import Run
from largeforge.trainer.random_state import seed_random_states
from tests.task.conftest import Runner

VALIDATED = ("data.validation=0.2", "trainer.validate_every_steps=2", "adapter.dropout=0.2", "trainer.max_steps=8")


def records(folder: Path, *, timed: bool = False) -> list[dict[str, Any]]:
    """metrics.jsonl in order, without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return found if timed else [{name: value for name, value in one.items() if name not in ("tokens_per_s", "memory_bytes")} for one in found]


def artifact_id(folder: Path) -> str:
    return str(json.loads((folder / "artifact" / "manifest.json").read_text())["id"])


class Stop:
    """Sends a signal to this process at a place of training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, where: str, step: int, times: int = 1) -> None:
        self.step, self.times = step, times
        name = {"step": "training_step", "validation": "validation_step"}[where]
        original = getattr(Method, name)

        def wrapped(method: Any, *args: Any) -> Any:
            result = original(method, *args)
            if method.trainer.global_step == step:
                self.strike()
            return result

        monkeypatch.setattr(Method, name, wrapped)

    def strike(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the whole run left, for all tests of this module."""
    return {}


@pytest.mark.parametrize(("where", "step"), [("step", 4), ("validation", 4), ("validation", 8), ("step", 8)])
def test_stopped_at_a_validation(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any], where: str, step: int) -> None:
    """Proves SR-F-007, SYS-F-018: stopped before, in, or after the last validation, a run that goes on logs every step and every validation once, with the
    very numbers of one that was never stopped, and ends with the same weights and the same numbers in result.json."""
    if not kept:
        code, result = train("whole", *VALIDATED)
        assert code == 0
        kept.update(records=records(tmp_path / "whole"), id=artifact_id(tmp_path / "whole"), metrics=result["metrics"])
        assert [one["step"] for one in kept["records"] if "validation_loss" in one] == [2, 4, 6, 8]
    with monkeypatch.context() as patch:
        Stop(patch, where=where, step=step)
        code, _ = train("broken", *VALIDATED)
    assert code == 143
    seed_random_states(99)  # as in another process, where nothing goes on from where it was
    code, result = train("broken", *VALIDATED, "resume=auto")
    assert code == 0
    same = ("loss", "loss_first", "validation_loss", "steps", "supervised_tokens")
    assert {name: result["metrics"][name] for name in same} == {name: kept["metrics"][name] for name in same}
    assert records(tmp_path / "broken") == kept["records"] and artifact_id(tmp_path / "broken") == kept["id"]


def test_early_stopping_goes_on_counting(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-F-023, SYS-F-018: validations without gain before the stop count after it; a run whose end was decided takes no further step."""
    words = [*VALIDATED[:3], "trainer.max_steps=20", "trainer.checkpoint.every_steps=1", "trainer.checkpoint.keep_last=9"]
    words += ["trainer.early_stopping.patience=2", "trainer.early_stopping.min_delta=5"]  # the first validation is the best; 4 and 6 bring nothing
    with monkeypatch.context() as patch:
        Stop(patch, where="step", step=4)  # taken after the validation of step 4 would be due: one without gain
        assert train("run", *words)[0] == 143
    code, result = train("run", *words, "resume=auto")
    assert code == 0 and result["metrics"]["steps"] == 6
    assert [one["step"] for one in records(tmp_path / "run") if "validation_loss" in one] == [2, 4, 6]
    assert "Stopping early at step 6: no validation_loss below" in capsys.readouterr().err
    # killed after the last checkpoint and before the artifact: it ends where it had ended
    first = artifact_id(tmp_path / "run")
    __import__("shutil").rmtree(tmp_path / "run" / "artifact")
    code, result = train("run", *words, "resume=auto")
    assert code == 0 and result["metrics"]["steps"] == 6 and artifact_id(tmp_path / "run") == first


def test_a_second_signal_stops_at_once(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint of that step is written, the exit code says which signal, and the run can go on from the one before."""
    words = ["trainer.max_steps=6", "trainer.checkpoint.every_steps=1"]
    with monkeypatch.context() as patch:
        Stop(patch, where="step", step=3, times=2)
        code, result = train("run", *words)
    assert code == 143 and result["status"] == "interrupted"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step=*")] == ["step=000002"]
    assert train("run", *words, "resume=auto")[0] == 0


def test_ctrl_c_in_a_terminal(tmp_path: Path, rows_path: Path, model_cache: Path, train: Runner) -> None:
    """Proves SYS-F-018, SYS-R-006: SIGINT reaches the whole process group, loaders too: one message, a checkpoint, exit 130; what a killed write left is
    cleaned up; the run goes on to the end."""
    words = ["trainer.max_steps=400", "adapter.dropout=0.2", "data.num_workers=1", "trainer.batch_size=4", "trainer.micro_batch_size=2"]
    command = [sys.executable, "-m", "largeforge", "task=sft", "model=nano", "data=chat", f"data.path={rows_path}", "data.max_length=128"]
    command += ["trainer=cpu", "trainer.precision=fp32", "folder=broken", *words]
    environment = {**os.environ, "LARGEFORGE_CACHE": str(model_cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "broken" / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < 3:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert told.count("Stopping at the next safe point") == 1 and "Traceback" not in told and "resume=auto" in told
    (checkpoint,) = (tmp_path / "broken" / "checkpoints").glob("step=*")
    step = int(checkpoint.name[5:])
    draft = tmp_path / "broken" / "checkpoints" / ".step=000399.1"
    draft.mkdir()
    # the same recipe in this process, cut to a few steps more: where the learning rate is a function of the length, that is another recipe
    code, _ = train("broken", *words[1:], f"trainer.max_steps={step + 2}", "resume=auto")
    assert code == 2
    allowed = "trainer.checkpoint.allow_changes=[trainer.max_steps]"
    code, result = train("broken", *words[1:], f"trainer.max_steps={step + 2}", "resume=auto", allowed)
    assert code == 0 and result["metrics"]["steps"] == step + 2 and not draft.exists()
    assert [one["step"] for one in records(tmp_path / "broken")] == list(range(1, step + 3))


# ---- another recipe ----


def test_into_a_changed_recipe(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows_path: Path) -> None:
    """Refused with a diff; what is allowed is obeyed from the next step on; other rows are seen by their content."""
    words = ["trainer.max_steps=4", "trainer.schedule=constant", "trainer.warmup_ratio=0", "method.learning_rate=1e-3"]
    with monkeypatch.context() as patch:
        Stop(patch, where="step", step=2)
        assert train("run", *words)[0] == 143
    assert train("run", *words, "resume=auto", "method.learning_rate=1e-4", "trainer.log_every_steps=2")[0] == 2
    told = capsys.readouterr().err
    assert "method.learning_rate   was 0.001   is 0.0001" in told and "log_every_steps   was" not in told
    content = rows_path.read_text()
    rows_path.write_text(content.replace("rivers", "oceans"))
    assert train("run", *words, "resume=auto")[0] == 2
    assert "data.sha256" in capsys.readouterr().err
    rows_path.write_text(content)
    # longer under a constant rate is no other recipe; the lower rate is allowed, and obeyed
    code, result = train(
        "run", *words[1:3], "trainer.max_steps=5", "method.learning_rate=1e-4", "resume=auto", "trainer.checkpoint.allow_changes=[method.learning_rate]"
    )
    assert code == 0 and result["metrics"]["steps"] == 5
    assert [one["learning_rate"] for one in records(tmp_path / "run")] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-4])
    assert train("run", *words, "resume=auto")[0] == 2 and "is finished" in capsys.readouterr().err


@pytest.mark.parametrize("validation", [(), ("data.validation=0.2", "trainer.validate_every_steps=3")])
def test_a_finished_run_is_trained_further_elsewhere(train: Runner, tmp_path: Path, validation: tuple[str, ...]) -> None:
    """With regular checkpoints the last step leaves one: 3 steps and 3 more under a constant rate are 6 at once; so with validations."""
    words = ["trainer.schedule=constant", "trainer.warmup_ratio=0", "trainer.checkpoint.every_steps=2", "adapter.dropout=0.1", *validation]
    assert train("six", *words, "trainer.max_steps=6")[0] == 0
    assert train("three", *words, "trainer.max_steps=3")[0] == 0
    code, _ = train("more", *words, "trainer.max_steps=6", f"resume={tmp_path / 'three'}")
    assert code == 0 and artifact_id(tmp_path / "more") == artifact_id(tmp_path / "six")


def test_weights_alone(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-F-017 in part: content=weights leaves an adapter that a new run starts from; resuming it is refused with the reason."""
    words = ["trainer.max_steps=4", "trainer.checkpoint.every_steps=1", "trainer.checkpoint.content=weights"]
    with monkeypatch.context() as patch:
        Stop(patch, where="step", step=2)
        assert train("run", *words)[0] == 143
    assert "model=run/checkpoints/step=000002" in capsys.readouterr().err
    assert train("run", *words, "resume=auto")[0] == 2
    assert "no run can go on from it exactly" in capsys.readouterr().err
    code, _ = train("next", "model=run/checkpoints/step=000002", "trainer.max_steps=1")
    assert code == 0


def test_a_disk_that_fills_up(train: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever cannot be written, the run ends in exit 2 and says how it goes on."""
    original = Run.log_metrics

    def full(run: Any, step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise OSError(28, "No space left on device", "metrics.jsonl")
        original(run, step, metrics)

    words = ["trainer.max_steps=4", "trainer.checkpoint.every_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_metrics", full)
        code, result = train("run", *words)
    told = capsys.readouterr().err
    assert code == 2 and result["status"] == "failed" and "the disk is full" in told and "resume=auto" in told and "Traceback" not in told
    code, result = train("run", *words, "resume=auto")
    assert code == 0 and result["metrics"]["steps"] == 4
