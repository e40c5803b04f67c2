"""A recipe run for a few steps in this process, with changes, watched: losses, the first gradient, the weights in the end.

Builds what the story builds; knows nothing about what is compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from largeforge.build import find
from largeforge.config.compose import compose
from largeforge.console import Console
from largeforge.proof.certificate import words_of
from largeforge.run import Run


@dataclass
class Steps:
    """What a few steps left.

    Args:
        losses: of each step, a mean over the step.
        norms: of each step's gradient before clipping, as training measures them: in fp32, which in a model's whole gradient is good for 1e-4.
        gradient: of the first step, before clipping, by parameter (fp32, on the CPU).
        weights: of what learns, after the last step.
        facts: what the data said of itself.
        device: where they were taken.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


class _Watcher(Callback):
    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not self.steps.gradient:
            self.steps.gradient = {name: p.grad.detach().float().cpu().clone() for name, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.losses.append(float(outputs["loss"]))
        self.steps.norms.append(float(outputs["gradient_norm"]))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps.weights = {name: p.detach().float().cpu().clone() for name, p in pl_module.named_parameters() if p.requires_grad}


def composed_with(run: Run, changes: dict[str, Any], *, folder: Path) -> Any:
    """The recipe with changes, composed and checked anew. Raises ConfigError where they contradict it."""
    return compose(words_of(run, {"verify": "none", "plan": False, **changes, "folder": folder}, without=("name", "resume")))


def assembled(run: Run, changes: dict[str, Any], *, folder: Path) -> tuple[Any, Run]:
    """What trains under the changed recipe, built; and the run it would be."""
    composed = composed_with(run, changes, folder=folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    quiet = Run(composed, folder=folder, progress=Console.silent())
    return find(composed.config.task.target)(composed.config).assemble(quiet), quiet


def take_steps(run: Run, changes: dict[str, Any], *, before: Callable[[Any], None] | None = None) -> Steps:
    """Take the steps of the changed recipe in this process.

    Args:
        run: of the proof.
        changes: keys and values.
        before: is given what was built, before the first step.
    """
    folder = run.folder / "steps"
    parts, _ = assembled(run, changes, folder=folder)
    steps = Steps()
    parts.trainer.watchers.append(_Watcher(steps))
    if before is not None:
        before(parts)
    parts.trainer.fit(parts.method, parts.data)
    steps.facts, steps.device = parts.data.facts, parts.trainer.device
    shutil.rmtree(folder)
    return steps


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """``|left - right| / |right|`` of all tensors as one vector; infinite where they have other names."""
    if left.keys() != right.keys() or not left:
        return float("inf")
    apart = sum(float((left[name].double() - right[name].double()).square().sum()) for name in left)
    size = sum(float(tensor.double().square().sum()) for tensor in right.values())
    return float((apart / size) ** 0.5) if size else float(apart > 0)


def relative(left: float, right: float) -> float:
    """``|left - right| / |right|``."""
    return abs(left - right) / max(abs(right), 1e-12)


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
