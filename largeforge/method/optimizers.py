"""Optimizers by name, and the learning rate over a run's steps; knows nothing about losses."""

from __future__ import annotations

import math
from typing import Any

import torch

from largeforge.contract import Optimization
from largeforge.errors import MissingExtra


def make_optimizer(name: str, groups: list[dict[str, Any]], *, learning_rate: float, fused: bool) -> torch.optim.Optimizer:
    """Build an optimizer over parameter groups.

    Args:
        name: "adamw" (Loshchilov and Hutter 2019, arXiv:1711.05101), "adamw_8bit" (moments in 8 bits, block by block: Dettmers et al.
            2022, arXiv:2110.02861), "adafactor" (factored second moments: Shazeer and Stern 2018, arXiv:1804.04235).
        groups: parameters with their weight decay.
        learning_rate: at its peak, > 0.
        fused: whether a fused kernel may be used.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    if name == "adamw_8bit":
        try:
            from bitsandbytes import optim
        except ImportError as fault:
            raise MissingExtra("bitsandbytes", extra="quant") from fault
        make: Any = optim.AdamW8bit  # type: ignore[attr-defined]
        eight_bit: torch.optim.Optimizer = make(groups, lr=learning_rate)
        return eight_bit
    if name == "adafactor":
        # torch's own scales the rate by the size of each tensor, which is nothing for fresh LoRA weights; here the rate is what the user set
        from transformers.optimization import Adafactor

        options: dict[str, Any] = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        factored: torch.optim.Optimizer = Adafactor(groups, lr=learning_rate, **options)  # type: ignore[no-untyped-call]
        return factored
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


def rate_factor(plan: Optimization, step: int) -> float:
    """Learning rate at `step` as a share of its peak, in [0, 1].

    Warm-up rises linearly; then "constant", "linear" to 0, "cosine" to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983), or "wsd": stable,
    then linearly to 0 over the last `decay_steps` (Hu et al. 2024, arXiv:2404.06395).
    """
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return 1.0
    if plan.schedule == "wsd":
        return max(0.0, min(1.0, (plan.num_steps - step) / max(1, plan.decay_steps)))
    done = min(1.0, (step - plan.warmup_steps) / max(1, plan.num_steps - plan.warmup_steps))
    return 1.0 - done if plan.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
