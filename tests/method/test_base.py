"""Law 6: one training_step is one optimizer step, whatever the split of its batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from largeforge.contract import LoadedModel, Optimization
from tests.method.conftest import Row, one_step, packed, padded, relative_difference, sft


@pytest.mark.parametrize(("num_batches", "packing"), [(4, False), (8, False), (32, False), (1, True), (4, True)])
def test_split_of_the_batch_does_not_matter(tiny: Callable[..., LoadedModel], rows: list[Row], num_batches: int, packing: bool) -> None:
    """Proves SYS-F-021: 32x1, 8x4 and 4x8, padded or packed, give one gradient and one loss."""
    expected, told = one_step(sft(tiny()), [padded(rows)])
    size = len(rows) // num_batches
    collate = packed if packing else padded
    found, reported = one_step(sft(tiny()), [collate(rows[i : i + size]) for i in range(0, len(rows), size)])
    assert relative_difference(found, expected) < 1e-6
    assert reported["loss"] == pytest.approx(told["loss"], rel=1e-6)


def test_mean_of_means_would_fail_this_law(tiny: Callable[..., LoadedModel], rows: list[Row]) -> None:
    """The rows' weights differ so much that dividing per micro-batch, as many tools do, is far outside the tolerance."""
    expected, _ = one_step(sft(tiny()), [padded(rows)])
    singles = [one_step(sft(tiny()), [padded([row])])[0] for row in rows]
    mean_of_means = {name: torch.stack([grads[name] for grads in singles]).mean(dim=0) for name in expected}
    assert relative_difference(mean_of_means, expected) > 1e-2


def test_clipping_happens_once_and_reports_the_norm_before(tiny: Callable[..., LoadedModel], rows: list[Row]) -> None:
    method = sft(tiny(), learning_rate=1.0)
    method.optimization = Optimization(num_steps=1, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=1e-3)
    gradients, told = one_step(method, [padded(rows[:16]), padded(rows[16:])])
    whole = math.sqrt(sum(float(grad.square().sum()) for grad in gradients.values()))
    assert told["gradient_norm"] == pytest.approx(whole, rel=1e-5)
    left = math.sqrt(sum(float(p.grad.square().sum()) for p in method.parameters() if p.grad is not None))
    assert left == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("schedule", "at_half", "at_end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)])
def test_schedules(tiny: Callable[..., LoadedModel], schedule: str, at_half: float, at_end: float) -> None:
    method = sft(tiny())
    method.optimization = Optimization(num_steps=110, schedule=schedule, warmup_steps=10, weight_decay=0.0, clip_norm=0.0)
    assert method.optimization_factor(0) == pytest.approx(0.1)
    assert method.optimization_factor(9) == pytest.approx(1.0)
    assert method.optimization_factor(60) == pytest.approx(at_half)
    assert method.optimization_factor(110) == pytest.approx(at_end)


def test_weight_decay_spares_vectors(tiny: Callable[..., LoadedModel], rows: list[Row]) -> None:
    method = sft(tiny())
    method.optimization = Optimization(num_steps=1, schedule="constant", warmup_steps=0, weight_decay=0.5, clip_norm=0.0)
    one_step(method, [padded(rows)])
    decayed, spared = method.trainer.optimizers[0].param_groups
    assert decayed["weight_decay"] == 0.5 and all(p.ndim >= 2 for p in decayed["params"])
    assert spared["weight_decay"] == 0.0 and all(p.ndim < 2 for p in spared["params"])
