"""A checkpoint of another number of processes: taken whole, shared out anew, and near to a run that was never broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from largeforge.trainer.checkpoint import number_by_module
from tests.task.conftest import Runner
from tests.task.test_resume_stops import artifact_id, records

WORDS = ("trainer.max_steps=6", "trainer.checkpoint.every_steps=2", "trainer.checkpoint.keep_last=9", "data.validation=0.2", "trainer.validate_every_steps=3")


def test_numbers_of_parameters_are_those_of_the_module() -> None:
    """Of four parameters two learn, the matrix first: numbers 2 and 1 of the module; what a plain optimizer loads is what it saved."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3))
    module[0].weight.requires_grad_(False)
    module[1].bias.requires_grad_(False)
    learning = [{"params": [module[1].weight]}, {"params": [module[0].bias]}]
    optimizer = torch.optim.AdamW(learning, lr=0.1)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint: dict[str, Any] = {"optimizer_states": [optimizer.state_dict()]}
    number_by_module(checkpoint, [optimizer], module)
    (state,) = checkpoint["optimizer_states"]
    assert [group["params"] for group in state["param_groups"]] == [[2], [1]] and set(state["state"]) == {1, 2}
    other = torch.optim.AdamW(learning, lr=0.2)
    other.load_state_dict(state)
    for parameter in (module[1].weight, module[0].bias):
        assert torch.equal(other.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


@pytest.mark.slow
def test_two_processes_one_and_two_again(train: Runner, tmp_path: Path, rows_path: Path, model_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-F-018 in part: FSDP2 on two processes, one process from its step 2, FSDP2 again from that one's step 4; without dropout the losses are those
    of a run of two processes to 1e-5, and on as many processes as before they are equal to the bit."""
    common = ["task=sft", "model=nano", "data=chat", f"data.path={rows_path}", "data.max_length=128", "trainer.batch_size=4", "trainer.micro_batch_size=2"]
    environment = {**os.environ, "LARGEFORGE_CACHE": str(model_cache), "PYTHONPATH": str(Path(__file__).parents[2])}

    def two(folder: str, *words: str) -> SimpleNamespace:
        command = [sys.executable, "-m", "largeforge", *common, "trainer=cpu", "trainer.precision=fp32", f"folder={folder}", *WORDS, *words]
        child = subprocess.run(
            [*command, "trainer.devices=2", "trainer.strategy=fsdp"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert child.returncode == 0, child.stderr
        return SimpleNamespace(told=child.stderr, losses=losses(tmp_path / folder))

    whole = two("whole")
    assert two("same", "resume=whole/checkpoints/step=000002").losses == {step: loss for step, loss in whole.losses.items() if step > 2}
    assert artifact_id(tmp_path / "same") == artifact_id(tmp_path / "whole")
    assert train("one", *WORDS, "resume=whole/checkpoints/step=000002")[0] == 0
    assert "The checkpoint is of 2 ranks, this run has 1" in capsys.readouterr().err
    one = losses(tmp_path / "one")
    again = two("again", "resume=one/checkpoints/step=000004")
    assert "The checkpoint is of 1 ranks, this run has 2" in again.told
    assert one == pytest.approx({step: whole.losses[step] for step in (3, 4, 5, 6)}, rel=1e-5)
    assert again.losses == pytest.approx({step: whole.losses[step] for step in (5, 6)}, rel=1e-5)
    assert json.loads((tmp_path / "one" / "checkpoints" / "step=000004" / "facts.json").read_text())["world_size"] == 1


def losses(folder: Path) -> dict[int, float]:
    return {one["step"]: one["loss"] for one in records(folder) if "loss" in one}
