"""Optimizers by name, learning rates by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from largeforge.contract import LoadedModel, Optimization
from largeforge.errors import MissingExtra
from largeforge.method.optimizers import make_optimizer, rate_factor
from tests.method.conftest import Row, one_step, padded, sft

NAMES = ["adamw", "adamw_8bit", "adafactor"]


class Problem:
    """A linear map to be found; 8-bit moments are kept of tensors of 4,096 numbers and more."""

    def __init__(self, name: str) -> None:
        if name == "adamw_8bit":
            pytest.importorskip("bitsandbytes")
        torch.manual_seed(0)
        self.inputs, self.target = torch.randn(32, 128), torch.randn(32, 128)
        self.weight, self.bias = torch.nn.Parameter(torch.zeros(128, 128)), torch.nn.Parameter(torch.zeros(128))
        groups = [{"params": [self.weight], "weight_decay": 0.01}, {"params": [self.bias], "weight_decay": 0.0}]
        self.optimizer = make_optimizer(name, groups, learning_rate=1e-2, fused=False)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss: Tensor = ((self.inputs @ self.weight + self.bias - self.target) ** 2).mean()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def state_bytes(self) -> int:
        tensors = [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_each_learns_and_goes_on_from_a_safe_file(name: str, tmp_path: Path) -> None:
    """Its state loads with weights_only=True, and ten steps later the weights are those of a run that was never stopped."""
    whole, resumed = Problem(name), Problem(name)
    first = whole.step()
    for _ in range(20):
        last = whole.step()
    assert last < 0.9 * first
    torch.save({"optimizer": whole.optimizer.state_dict(), "weight": whole.weight.data, "bias": whole.bias.data}, tmp_path / "state.ckpt")
    saved = torch.load(tmp_path / "state.ckpt", weights_only=True)
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.weight.data.copy_(saved["weight"])
    resumed.bias.data.copy_(saved["bias"])
    for _ in range(10):
        whole.step(), resumed.step()
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


def test_what_they_hold() -> None:
    """AdamW keeps two fp32 numbers a parameter, adafactor one row and one column of a matrix; 8 bits are a quarter of 32."""
    held = {}
    for name in ("adamw", "adafactor"):
        problem = Problem(name)
        problem.step()
        held[name] = problem.state_bytes()
    assert held["adamw"] == pytest.approx(2 * 4 * (128 * 128 + 128), abs=16)
    assert held["adafactor"] == pytest.approx(4 * (128 + 128 + 128), abs=16)


def test_eight_bits_are_a_quarter() -> None:
    problem = Problem("adamw_8bit")
    problem.step()
    assert problem.state_bytes() < 0.35 * 2 * 4 * (128 * 128 + 128)


def test_eight_bits_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match="bitsandbytes is not installed"):
        make_optimizer("adamw_8bit", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], learning_rate=1.0, fused=False)


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("adafactor", "Adafactor")])
def test_a_method_steps_with_what_was_chosen(tiny: Callable[..., LoadedModel], rows: list[Row], name: str, kind: str) -> None:
    method = sft(tiny())
    method.optimization = Optimization(num_steps=1, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0, optimizer=name)
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    one_step(method, [padded(rows)])
    assert type(method.trainer.optimizers[0]).__name__ == kind
    assert any(not torch.equal(before[key], p) for key, p in method.named_parameters())


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (9, 1.0), (10, 1.0), (79, 1.0), (80, 1.0), (85, 0.75), (90, 0.5), (99, 0.05), (100, 0.0)])
def test_wsd_warms_up_stays_and_falls(step: int, factor: float) -> None:
    """100 steps, 10 of them of warm-up, 20 of decay (Hu et al. 2024, section 4.2)."""
    plan = Optimization(num_steps=100, schedule="wsd", warmup_steps=10, weight_decay=0.0, clip_norm=0.0, decay_steps=20)
    assert rate_factor(plan, step) == pytest.approx(factor)
