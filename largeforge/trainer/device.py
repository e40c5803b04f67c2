"""The choices of the group trainer: which device.  Knows nothing about what is trained."""

from __future__ import annotations

import torch

from largeforge.errors import InputError
from largeforge.trainer.base import Trainer


class Auto(Trainer):
    """The GPU where there is one, else the CPU."""

    def find_device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"


class CPU(Trainer):
    """The CPU, also where there is a GPU."""

    def find_device(self) -> str:
        return "cpu"


class Ray(Auto):
    """What a worker of a Ray cluster has: a GPU where it was given one. The workers are started by largeforge/trainer/ray.py."""


class GPU(Trainer):
    """An NVIDIA GPU.

    Raises:
        InputError: there is none that torch can use.
    """

    def find_device(self) -> str:
        if not torch.cuda.is_available():
            raise InputError("trainer=gpu, but torch sees no NVIDIA GPU here.", next_step="trainer=auto, or install a driver and a CUDA build of torch")
        return "cuda"
