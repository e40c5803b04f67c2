"""Which device and precision a trainer takes, and how a run is cut into steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from largeforge.errors import InputError
from largeforge.trainer.config import AutoConfig
from largeforge.trainer.device import CPU, GPU, Auto
from largeforge.trainer.memory import peak_bytes, reset_peak, resident_bytes

VALUES = yaml.safe_load((Path(__file__).parents[2] / "conf" / "trainer" / "auto.yaml").read_text())


def config(**changes: Any) -> AutoConfig:
    return AutoConfig.model_validate({**VALUES, **changes})


def test_auto_takes_what_is_there() -> None:
    """Proves SYS-F-019 in part: the precision is chosen for the device; bf16 only where the device has it."""
    trainer = Auto(config())
    assert trainer.device == ("cuda" if torch.cuda.is_available() else "cpu")
    if trainer.device == "cpu":
        assert trainer.precision == ("bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32")
    assert CPU(config(precision="fp32")).precision == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_gpu_without_one_is_an_error_with_the_mend() -> None:
    with pytest.raises(InputError, match="trainer=auto"):
        GPU(config())


@pytest.mark.parametrize(
    ("rows", "epochs", "max_steps", "steps"), [(100, 1, None, 7), (100, 2.5, None, 18), (100, 1, 3, 3), (3, 1, None, 1), (3, 0.1, None, 1)]
)
def test_steps_of_a_run(rows: int, epochs: float, max_steps: int | None, steps: int) -> None:
    trainer = CPU(config(epochs=epochs, max_steps=max_steps, batch_size=16))
    assert trainer.num_steps(rows) == steps
    assert trainer.window(rows, seed=3, start_step=1).num_steps == steps


def test_warmup_is_a_share_of_the_steps() -> None:
    plan = CPU(config(warmup_ratio=0.1, schedule="linear", weight_decay=0.2, clip_norm=0.5)).optimization(55)
    assert (plan.num_steps, plan.warmup_steps, plan.schedule, plan.weight_decay, plan.clip_norm) == (55, 6, "linear", 0.2, 0.5)


def test_peak_is_of_what_came_after_the_reset() -> None:
    reset_peak("cpu")
    start = resident_bytes("cpu")
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    del block
    assert peak_bytes("cpu") - start > 60 * 2**20
    reset_peak("cpu")
    assert peak_bytes("cpu") - start < 60 * 2**20
