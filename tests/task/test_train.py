"""The train story through the real entry point: what it leaves, how it is interrupted, how it goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.task.conftest import Runner


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss of metrics.jsonl; a step taken twice (killed, and again after resuming) must say the same."""
    found: dict[int, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            assert found.setdefault(record["step"], record["loss"]) == record["loss"]
    return found


def test_what_a_run_leaves(train: Runner, tmp_path: Path) -> None:
    """Proves SR-F-003, SYS-F-010, SYS-F-065: LoRA by default; folder, lock, logs, report, curves, artifact."""
    code, result = train("run", "trainer.max_steps=3", "data.validation=0.2", "log_format=json")
    run = tmp_path / "run"
    assert code == 0
    assert {"config.yaml", "recipe.lock.yaml", "result.json", "log.jsonl", "metrics.jsonl", "report.md", "curve_loss.png", "tensorboard", "artifact"} <= {
        p.name for p in run.iterdir()
    }
    assert result["task"] == "sft" and result["status"] == "done" and result["artifact"] == str(Path("run/artifact"))
    metrics = result["metrics"]
    assert metrics["rows_in"] == 24 and metrics["rows_bad"] == 0 and metrics["steps"] == 3 and metrics["validation_loss"] > 0
    assert metrics["peak_memory_bytes"] > 2**20 and metrics["train_seconds"] > 0
    lock = yaml.safe_load((run / "recipe.lock.yaml").read_text())
    assert lock["seed"] == 0 and lock["packages"]["torch"] and len(lock["template_sha256"]) == 64
    assert all(len(source["sha256"]) == 64 for source in lock["sources"]) and lock["facts"]["packing"] in (True, False)
    assert lock["config"]["data"]["max_length"] == 128
    for line in (run / "log.jsonl").read_text().splitlines():
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
    assert "curve_loss.png" in (run / "report.md").read_text()
    # the adapter alone, and nothing of the base
    weights = load_file(run / "artifact" / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)


def test_full_fine_tuning_learns(train: Runner, tmp_path: Path) -> None:
    """Proves SR-F-001: adapter=none trains every parameter; the loss on rows seen again and again falls."""
    code, result = train("run", "adapter=none", "trainer.epochs=6", "method.learning_rate=3e-3", "tracker=csv")
    assert code == 0
    assert result["metrics"]["loss"] < 0.8 * result["metrics"]["loss_first"]
    assert (tmp_path / "run" / "csv" / "metrics.csv").is_file() and not (tmp_path / "run" / "tensorboard").exists()
    assert "model.embed_tokens.weight" in load_file(tmp_path / "run" / "artifact" / "model.safetensors")


def test_equal_inputs_give_equal_ids(train: Runner, tmp_path: Path) -> None:
    """Law 5: the same config twice leaves the same bytes; another seed does not."""
    ids = []
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(folder, "trainer.max_steps=2", f"seed={seed}", "adapter.dropout=0.1")
        ids.append(json.loads((tmp_path / folder / "artifact" / "manifest.json").read_text())["id"])
    assert ids[0] == ids[1] != ids[2]


class StopAt:
    """Asks for a stop when a given step is logged, as Ctrl-C would."""

    def __init__(self, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from largeforge.run import Run

        original = Run.log_metrics

        def log_metrics(run: Any, at: int, metrics: dict[str, float]) -> None:
            original(run, at, metrics)
            if at == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Run, "log_metrics", log_metrics)


@pytest.mark.parametrize(("adapter", "packing", "stop"), [("lora", "true", 3), ("lora", "false", 6), ("none", "true", 7)])
def test_interrupted_and_resumed_is_as_if_nothing_happened(
    train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, packing: str, stop: int
) -> None:
    """Proves SR-F-007, SYS-F-018: SIGTERM inside, at and after the end of an epoch (6 steps) leaves a checkpoint and says how to go on; batches,
    dropout, losses and final weights equal, bit for bit, those of a run that was never stopped."""
    words = [f"adapter={adapter}", f"data.packing={packing}", "trainer.max_steps=9", "trainer.log_every_steps=1"]
    words += ["adapter.dropout=0.2"] if adapter == "lora" else []
    assert train("whole", *words)[0] == 0
    with monkeypatch.context() as patch:
        StopAt(stop, patch)
        code, result = train("broken", *words)
    assert code == 143 and result["status"] == "interrupted"
    assert (tmp_path / "broken" / "checkpoints" / f"step={stop:06d}" / "manifest.json").is_file()
    assert train("broken", *words)[0] == 2  # a folder that holds a run is not written over
    code, result = train("broken", *words, "resume=auto")
    assert code == 0 and result["status"] == "done"
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    artifacts = [json.loads((tmp_path / name / "artifact" / "manifest.json").read_text())["id"] for name in ("whole", "broken")]
    assert artifacts[0] == artifacts[1]


def test_killed_and_resumed(train: Runner, tmp_path: Path, rows_path: Path, model_cache: Path) -> None:
    """kill -9 from outside at a random moment after a checkpoint: the resumed run ends with the same weights."""
    words = ["trainer.max_steps=12", "trainer.checkpoint.every_steps=2", "adapter.dropout=0.2", "data.num_workers=1"]
    assert train("whole", *words)[0] == 0
    common = ["task=sft", "model=nano", "data=chat", f"data.path={rows_path}", "data.max_length=128", "trainer.batch_size=4", "trainer.micro_batch_size=2"]
    command = [sys.executable, "-m", "largeforge", *common, "trainer=cpu", "trainer.precision=fp32", "folder=broken", *words]
    environment = {**os.environ, "LARGEFORGE_CACHE": str(model_cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "broken").glob("checkpoints/step=*/manifest.json")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.random() * 0.3)
    child.kill()
    child.wait()
    code, _ = train("broken", *words, "resume=auto")
    assert code == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Proves SYS-D-020."""
    words = ["trainer.max_steps=6", "trainer.checkpoint.every_steps=2", "trainer.checkpoint.keep_last=3"]
    with monkeypatch.context() as patch:
        StopAt(5, patch)
        train("run", *words)
    newest = tmp_path / "run" / "checkpoints" / "step=000005" / "state.ckpt"
    newest.write_bytes(newest.read_bytes()[:-7])
    capsys.readouterr()
    code, _ = train("run", *words, "resume=auto")
    told = capsys.readouterr().err
    assert code == 0 and "step=000005" in told and "Taking the checkpoint before it" in told
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]


def test_checkpoints_that_are_kept(train: Runner, tmp_path: Path) -> None:
    """Proves SYS-F-017, SYS-D-010: the last k, and the best k by the validation of that very step."""
    words = ["trainer.max_steps=8", "trainer.checkpoint.every_steps=1", "trainer.checkpoint.keep_last=2", "trainer.checkpoint.keep_best=1"]
    code, _ = train("run", *words, "data.validation=0.2", "trainer.validate_every_steps=3", "method.learning_rate=1e-3")
    assert code == 0
    folder = tmp_path / "run" / "checkpoints"
    scores = json.loads((folder / "validation.json").read_text())
    assert set(scores) == {"step=000003", "step=000006", "step=000008"}
    best = min(scores, key=lambda name: scores[name])
    assert {path.name for path in folder.glob("step=*")} == {best, "step=000007", "step=000008"}
    told = {
        r["step"]: r["validation_loss"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if "validation_loss" in (r := json.loads(line))
    }
    assert {f"step={step:06d}": loss for step, loss in told.items()} == scores


def test_early_stopping(train: Runner, tmp_path: Path) -> None:
    """Proves SYS-F-023: a loss that does not fall by min_delta stops the run after `patience` validations."""
    code, result = train(
        "run",
        "trainer.max_steps=20",
        "data.validation=0.2",
        "trainer.validate_every_steps=2",
        "trainer.early_stopping.patience=2",
        "trainer.early_stopping.min_delta=5",
    )
    assert code == 0 and result["metrics"]["steps"] == 6


def test_a_loss_that_is_no_number_stops_the_run(train: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = train("run", "method.learning_rate=1e30", "adapter=none", "trainer.clip_norm=0", "trainer.max_steps=6", "trainer.warmup_ratio=0")
    assert code == 2 and result["status"] == "failed"
    assert "the loss is" in capsys.readouterr().err


def test_a_named_checkpoint_that_is_none(train: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = train("run", "resume=outputs/nowhere")
    assert code == 2 and "resume=outputs/nowhere is no checkpoint" in capsys.readouterr().err


def test_gradient_checkpointing_is_exact(train: Runner, tmp_path: Path) -> None:
    """Proves SYS-F-020: the same losses, less memory held; here the losses."""
    train("plain", "trainer.max_steps=2", "adapter=none")
    train("checkpointed", "trainer.max_steps=2", "adapter=none", "trainer.gradient_checkpointing=true")
    plain, checkpointed = losses(tmp_path / "plain"), losses(tmp_path / "checkpointed")
    assert checkpointed == pytest.approx(plain, rel=1e-6)
