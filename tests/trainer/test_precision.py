"""fp16 with loss scaling, on a CPU scaler: clipping sees unscaled gradients, a step that overflows changes nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer as Lightning
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from largeforge.contract import Optimization
from largeforge.errors import InputError
from largeforge.method.sft import SFT
from tests.tiny_models import part
from tests.trainer.ranks_child import Seen, method, rows

CLIP = 0.05


class Scaled(Seen):
    """What a run under a loss scaler does: also its gradients after clipping, rates, and weights after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.norms_left: list[float] = []
        self.weights_after: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        self.norms_left.append(float(torch.stack([p.grad.norm() for p in module.parameters()]).norm()))
        self.weights_after.append(torch.cat([p.detach().flatten().clone() for p in module.parameters()]))


def train(*, scale: float | None, num_steps: int, backoff: float = 0.5) -> tuple[SFT, Scaled, torch.Tensor]:
    """Take steps in fp16 from this loss scale; None is fp32. Returns also the weights before the first."""
    made, seen = method({}), Scaled()
    made.optimization = Optimization(num_steps=num_steps, schedule="linear", warmup_steps=0, weight_decay=0.0, clip_norm=CLIP)
    before = torch.cat([p.detach().flatten().clone() for p in made.parameters()])
    plugins: Any = [] if scale is None else [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff))]
    trainer = Lightning(
        **{"accelerator": "cpu", "max_steps": num_steps, "max_epochs": 1, "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
        callbacks=[seen],
        plugins=plugins,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        trainer.fit(made, DataLoader([rows(8)] * num_steps, batch_size=None))
    return made, seen, before


def test_clipping_sees_unscaled_gradients() -> None:
    """Proves SYS-F-019: with a scale of 1,024 the norm told is that of fp32, not a thousand times it, and what is left is the limit."""
    _, half, _ = train(scale=1024.0, num_steps=1)
    _, full, _ = train(scale=None, num_steps=1)
    assert half.told[0]["gradient_norm"] == pytest.approx(full.told[0]["gradient_norm"], rel=1e-2)
    assert half.told[0]["loss"] == pytest.approx(full.told[0]["loss"], rel=1e-3)
    assert full.told[0]["gradient_norm"] > 2 * CLIP
    assert half.norms_left[0] == pytest.approx(CLIP, rel=1e-3) and half.told[0]["overflow"] == 0.0


def test_a_step_that_overflows_changes_nothing() -> None:
    """Proves SYS-F-019: weights, optimizer and schedule wait for the next step, which a smaller scale takes."""
    _, seen, before = train(scale=2.0**30, num_steps=3, backoff=2.0**-20)
    assert [told["overflow"] for told in seen.told] == [1.0, 0.0, 0.0]
    assert torch.equal(seen.weights_after[0], before) and not torch.equal(seen.weights_after[1], before)
    # linear over 3 steps: the rate of the first step is used once more, since it was not taken
    assert [told["learning_rate"] for told in seen.told] == pytest.approx([1e-3, 1e-3, 1e-3 * 2 / 3])
    assert all(told["taken"] for told in seen.told)


def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="fp16 trains on a GPU"):
        part("trainer", "cpu", precision="fp16")
