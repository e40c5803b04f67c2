"""Every random state that training draws from: taken, kept in types that a weights-only load accepts, put back. Draws nothing itself."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch


def random_state() -> dict[str, Any]:
    """The states of torch, of each GPU, of Python and of numpy in this process."""
    version, words, gauss = random.getstate()
    numbers: Any = numpy.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = numbers
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.tensor(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every random state back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys.tolist(), dtype=numpy.uint32), position, has_gauss, cached))


def seed_random_states(seed: int) -> None:
    """Start from a seed alone, whatever was drawn before (a benchmark, fresh adapter weights)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def of_all_ranks(state: dict[str, Any], world_size: int) -> list[dict[str, Any]]:
    """The states of all ranks, in their order; every rank asks."""
    if world_size == 1:
        return [state]
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, state)
    return gathered
