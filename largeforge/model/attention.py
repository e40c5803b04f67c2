"""Kinds of attention by the user's words: what transformers calls them, and where they run. Knows nothing about methods."""

from __future__ import annotations

import importlib.util

from largeforge.errors import ModelError

NAMES = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2", "flex": "flex_attention"}
ON_GPU = ("flash", "flex")


def outlined(kind: str) -> str:
    """Return the kind that a network on the meta device is built with: the sizes are sdpa's, and no library of a GPU is needed to plan for one."""
    return "sdpa" if kind in ON_GPU else NAMES[kind]


def runnable(kind: str) -> str:
    """Return transformers' name of a kind that runs on this machine.

    Raises:
        ModelError: it needs a GPU, or a library, that is not here. torch 2.13 has no backward pass of flex on a CPU.
    """
    if kind in ON_GPU:
        import torch

        if not torch.cuda.is_available():
            raise ModelError(f"model.attention={kind} needs an NVIDIA GPU, and there is none here.", next_step="model.attention=sdpa")
    if kind == "flash" and importlib.util.find_spec("flash_attn") is None:
        raise ModelError("model.attention=flash needs flash-attn, which is not installed.", next_step="pip install flash-attn, or model.attention=sdpa")
    return NAMES[kind]
