"""Steps that go wrong, and memory that runs out: the run stops, names step and rows, keeps what was good, and says what to change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from largeforge.method.sft import SFT
from largeforge.task.relief import Candidate, chosen
from largeforge.trainer.random_state import seed_random_states
from tests.task.conftest import Runner

WORDS = ("trainer.max_steps=6", "trainer.log_every_steps=1", "adapter.dropout=0.1", "data.packing=false")


def spoil(monkeypatch: pytest.MonkeyPatch, *, step: int, how: Any) -> None:
    """Have the loss of every micro-batch of one step (counted from 1) go through `how`."""
    original = SFT.loss

    def loss(method: SFT, batch: Any) -> Any:
        terms = original(method, batch)
        if getattr(method.trainer, "global_step", None) == step - 1 and method.trainer.training:  # a plan has no steps
            for term in terms:
                term.sum = how(term.sum)
        return terms

    monkeypatch.setattr(SFT, "loss", loss)


class Poisoned(torch.autograd.Function):
    """Passes a loss on as it is, and makes its gradient not a number."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.nan


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda total: total * math.nan, "the loss is nan at step 4"),
        (lambda total: Poisoned.apply(total), "the gradient's norm is nan at step 4"),
    ],
)
def test_no_number(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: Any, told: str) -> None:
    """Proves SYS-R-006 in part: step and rows are named, the state before is a checkpoint, and a run that goes on from there ends like one to which
    nothing had happened."""
    assert train("whole", *WORDS)[0] == 0
    with monkeypatch.context() as patch:
        spoil(patch, step=4, how=how)
        code, result = train("run", *WORDS)
    said = capsys.readouterr().err
    assert code == 2 and result["status"] == "failed" and told in said and "Traceback" not in said
    rows = next(line for line in said.splitlines() if line.startswith("Rows of the step:"))
    assert rows.count("rows.jsonl:") == 4  # trainer.batch_size
    kept = tmp_path / "run" / "checkpoints" / "step=000003"
    assert f"The state before it was kept: {Path('run/checkpoints/step=000003')}" in said and json.loads((kept / "facts.json").read_text())["step"] == 3
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    seed_random_states(99)
    assert train("run", *WORDS, "resume=auto")[0] == 0
    ids = [json.loads((tmp_path / name / "artifact" / "manifest.json").read_text())["id"] for name in ("whole", "run")]
    assert ids[0] == ids[1]


def test_a_spike(train: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss of a hundred times what came before is not stepped with; without the setting it is."""
    spoil(monkeypatch, step=10, how=lambda total: total * 100)
    words = ["trainer.max_steps=11", *WORDS[1:]]
    code, _ = train("run", *words, "trainer.spike_factor=20")
    assert code == 2 and "the loss jumps to" in (said := capsys.readouterr().err) and "at step 10, more than trainer.spike_factor=20 times" in said
    assert train("free", *words)[0] == 0


def test_weights_that_hold_no_numbers_are_not_kept(train: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate so high that a step of finite gradients ruins the weights: the checkpoint before stays the last."""
    words = ["method.learning_rate=1e38", "adapter=none", "trainer.clip_norm=0", "trainer.max_steps=6", "trainer.warmup_ratio=0"]
    code, _ = train("run", *words, "trainer.weight_decay=1", "trainer.checkpoint.every_steps=1")
    said = capsys.readouterr().err
    assert code == 2 and ("The weights hold no numbers already" in said or "The state before it was kept" in said)
    for path in (tmp_path / "run" / "checkpoints").glob("step=*/state.ckpt"):
        assert path.parent.name in said


def test_out_of_memory(train: Runner, rows_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3, and the plan's own numbers for what would need less, with a command that goes on from the checkpoint."""
    long = {"messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": " ".join(str(number) for number in range(100))}]}
    rows_path.write_text(f"{json.dumps(long)}\n" * 16)

    def full(total: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")

    spoil(monkeypatch, step=2, how=full)
    words = ["trainer.checkpoint.every_steps=1", "trainer.batch_size=8", "trainer.micro_batch_size=8", "data.max_length=512", "data.packing=false"]
    code, result = train("run", *words)
    said = capsys.readouterr().err
    assert code == 3 and result["status"] == "failed" and "Traceback" not in said
    assert "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB." in said and "Predicted peaks on" in said
    lines = {line.split("   ")[0].strip(): line for line in said.splitlines() if "GiB   fits" in line}
    peaks = {name: float(line.split("GiB")[0].split()[-1]) for name, line in lines.items()}
    assert peaks["as it is"] > peaks["trainer.micro_batch_size=4"] > peaks["trainer.micro_batch_size=1"] > 0
    assert peaks["as it is"] > peaks["trainer.gradient_checkpointing=true"]
    # the first change with clearly less is proposed, from the checkpoint that stands
    assert "trainer.micro_batch_size=4 folder=run resume=auto 'trainer.checkpoint.allow_changes=[trainer.micro_batch_size]'" in said


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")])
def test_the_cpu_runs_out_too(train: Runner, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def full(total: torch.Tensor) -> torch.Tensor:
        raise fault

    spoil(monkeypatch, step=1, how=full)
    monkeypatch.setattr("largeforge.task.relief.BUDGET_S", -1.0)  # what is planned is tested above
    assert train("run", *WORDS)[0] == 3


def test_which_change_is_proposed() -> None:
    """The first that fits with clearly less, else the smallest; a change that saves nothing is no advice."""
    as_it_is, half, one = Candidate({}, 100, False), Candidate({"a": "4"}, 80, False), Candidate({"a": "1"}, 50, True)
    assert chosen([as_it_is, half, one, Candidate({"b": "1"}, 10, True)]) is one
    assert chosen([as_it_is, half]) is half
    assert chosen([Candidate({}, 100, True), Candidate({"a": "4"}, 99, True)]) is None
