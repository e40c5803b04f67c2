"""A step whose loss or gradient is no number changes nothing; under fp16 that is the loss scaler's to see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as Lightning
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from largeforge.contract import LoadedModel, Optimization
from largeforge.method.sft import SFT
from tests.method.conftest import Row, padded, sft


class Spoilt(torch.autograd.Function):
    """The same value, with a gradient of `value`."""

    @staticmethod
    def forward(context: Any, total: torch.Tensor, value: float) -> torch.Tensor:
        context.value = value
        return total.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient * context.value, None


class Steps(Callback):
    """What each step told, and weights, rate and scale after it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.told.append({**outputs, "weights": weights, "rate": rate, "scale": scaler.get_scale() if scaler else 1.0, "step": trainer.global_step})


def steps(
    model: LoadedModel, rows: list[Row], monkeypatch: pytest.MonkeyPatch, how: Callable[[torch.Tensor], torch.Tensor], **options: Any
) -> list[dict[str, Any]]:
    """Three steps, of which the second is spoilt."""
    original, seen = SFT.loss, Steps()

    def loss(method: SFT, batch: Any) -> Any:
        terms = original(method, batch)
        if len(seen.told) == 1:
            terms[0].sum = how(terms[0].sum)
        return terms

    monkeypatch.setattr(SFT, "loss", loss)
    method = sft(model, learning_rate=1e-2)
    method.optimization = Optimization(num_steps=4, schedule="linear", warmup_steps=0, weight_decay=0.1, clip_norm=1.0)
    loader: Any = DataLoader([padded(rows)] * 3, batch_size=1, collate_fn=list)  # type: ignore[arg-type]
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        Lightning(accelerator="cpu", max_epochs=1, callbacks=[seen], **quiet, **options).fit(method, loader)  # type: ignore[arg-type]
    return seen.told


@pytest.mark.parametrize("how", [lambda total: total * math.nan, lambda total: total + math.inf, lambda total: Spoilt.apply(total, math.nan)])
def test_nothing_changes(
    tiny: Callable[..., LoadedModel], rows: list[Row], monkeypatch: pytest.MonkeyPatch, how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Weights, learning rate and the count of steps stay; the step after it is taken."""
    first, second, third = steps(tiny(), rows, monkeypatch, how)
    assert (first["taken"], second["taken"], third["taken"]) == (True, False, True)
    assert torch.equal(first["weights"], second["weights"]) and not torch.equal(second["weights"], third["weights"])
    assert first["rate"] == second["rate"] > third["rate"] and (second["step"], third["step"]) == (1, 2)


def test_a_scaler_skips_what_overflows(tiny: Callable[..., LoadedModel], rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-F-019 in part: fp16 with a finite loss and an infinite gradient is no fault: the scaler skips the step and halves its scale."""
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))  # type: ignore[arg-type]
    first, second, third = steps(tiny(), rows, monkeypatch, lambda total: Spoilt.apply(total, math.inf), plugins=[precision])
    assert first["taken"] and second["taken"] and third["taken"] and math.isfinite(float(second["loss"]))
    assert torch.equal(first["weights"], second["weights"]) and not torch.equal(second["weights"], third["weights"])
    assert second["scale"] == first["scale"] / 2
