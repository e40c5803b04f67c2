"""Law 6 on two real processes: the gradient of a step is that of one process, under DDP and FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from largeforge.process import free_port
from largeforge.trainer.launch import environment_of
from tests.trainer import ranks_child
from tests.trainer.ranks_child import CASES, NUM_ROWS, take

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found, by case."""
    out, port = tmp_path_factory.mktemp("ranks") / "found.pt", free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.ranks_child", str(out)],
            **{"env": {**os.environ, **environment_of(number, 2, port=port), "OMP_NUM_THREADS": "1"}, "cwd": ROOT},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        )
        for number in range(2)
    ]
    said = [child.communicate(timeout=180)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said[0][-3000:]
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """|left - right| / |right| over all tensors as one vector."""
    assert left.keys() == right.keys() and left
    one, other = (torch.cat([tensors[name].flatten() for name in sorted(left)]) for tensors in (left, right))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_step_as_one(two: dict[str, Any], name: str) -> None:
    """Proves SYS-F-016, SYS-F-020, SYS-F-021: 2 ranks x 16 rows are 1 x 32, an odd row and a rank with none included.

    Gradients to 1e-6 at the first step and 1e-5 after steps of AdamW; losses and norms alike; and what is exported are the same weights.
    """
    case, found = CASES[name], two[name]
    alone = take(case, ranks_child.share(case.get("num_rows", NUM_ROWS), 0, 1), "auto")
    assert found["sharded"] == name.startswith("fsdp")
    for step, (gradient, expected) in enumerate(zip(found["gradients"], alone.gradients, strict=True)):
        assert difference(gradient, expected) < (1e-6 if step == 0 else 1e-5)
    for told, expected_told in zip(found["told"], alone.told, strict=True):
        for key in ("loss", "nll", "gradient_norm", "supervised_tokens"):
            assert told[key] == pytest.approx(expected_told[key], rel=1e-6)
    learnt = {key: alone.weights[key] for key in found["weights"]}
    assert difference(found["weights"], learnt) < 1e-5
    if name == "fsdp_lora":
        assert found["weights"] and all("lora_" in key for key in found["weights"])
    elif name == "fsdp":
        assert "lm_head.weight" not in found["weights"]  # tied, and kept once


def test_ranks_have_other_rows(two: dict[str, Any]) -> None:
    """Half of the rows would give another gradient: the equality above is not for nothing."""
    half = take({}, ranks_child.share(NUM_ROWS, 0, 2), "auto")
    assert difference(two["ddp"]["gradients"][0], half.gradients[0]) > 1e-2
