"""A plugin of vLLM that asks Linux for the AMX tiles: a process that uses them unasked is killed (SIGILL) at its first short prompt."""

from __future__ import annotations


def ask_for_tiles() -> None:
    """Called by vLLM in each of its processes before a model is loaded; does nothing on a CPU without AMX."""
    import torch

    torch.cpu._init_amx()
