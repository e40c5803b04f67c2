"""Which dtype weights are held in: the one place that asks what this machine computes; knows nothing about models."""

from __future__ import annotations

import torch

NAMED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def held_dtype(name: str, precision: str | None = None) -> torch.dtype:
    """Return the dtype of frozen weights; `auto` follows the trainer's precision, else is bf16 where this machine computes it, else fp32."""
    if name == "auto" and precision is not None:
        name = precision
    if name != "auto":
        return NAMED[name]
    return torch.bfloat16 if computes_bf16() else torch.float32


def computes_bf16() -> bool:
    """True where the GPU, or without one the CPU, has bf16 arithmetic of its own rather than emulating it."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # the names torch has for it
