"""What each of several devices holds of a model that they train together. Arithmetic over sizes; knows nothing about torch.

DDP holds all of it in each (Li et al. 2020, arXiv:2006.15704). FSDP2 cuts every tensor along its first dimension and brings a layer's
tensors together only while the layer computes (Zhao et al. 2023, arXiv:2304.11277; torch's fully_shard).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

# With its own tensors a layer computes, the next one's are on their way, and what arrives lies in one piece before it is cut into tensors.
LAYERS_AT_ONCE = 3
# A layer's gradient, and the copy of it that is being sent.
GRADIENTS_AT_ONCE = 2


@dataclass(frozen=True)
class Held:
    """One parameter.

    Args:
        shape: whole.
        element_bytes: of one number; a packed weight's may be a fraction.
        learns: whether it has a gradient.
        group: which group of tensors it is brought together with: 0 .. for layers, -1 for what is left of the model.
    """

    shape: tuple[int, ...]
    element_bytes: float
    learns: bool
    group: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all of it."""
        return round(prod(self.shape) * self.element_bytes)


@dataclass(frozen=True)
class Sharing:
    """How processes share a model.

    Args:
        strategy: "alone" is one process.
        num_devices: 1 where it is.
    """

    strategy: Literal["alone", "ddp", "fsdp"] = "alone"
    num_devices: int = 1

    @property
    def spread(self) -> bool:
        """Whether each device holds only a part."""
        return self.strategy == "fsdp"

    def share(self, held: Held) -> int:
        """Bytes of one parameter in the device that holds most of it: rows are dealt out evenly, and the last devices may have fewer."""
        if not self.spread or not held.shape:
            return held.num_bytes
        rows = -(-held.shape[0] // self.num_devices)
        return round(rows * prod(held.shape[1:]) * held.element_bytes)

    def gathered(self, parameters: Sequence[Held], *, accumulates: bool = False) -> int:
        """Bytes that are there whole, besides the shares, at the worst moment of a step.

        What belongs to no layer (embedding, head) stays whole from its first use to the end of the backward pass, and so does its gradient.

        Args:
            parameters: all of the model's.
            accumulates: whether a step has several micro-batches: gradients then are whole in each device until the last, and counted elsewhere.
        """
        if not self.spread:
            return 0
        layers: dict[int, tuple[int, int]] = {}
        for held in parameters:
            whole, learning = layers.get(held.group, (0, 0))
            layers[held.group] = (whole + held.num_bytes, learning + held.num_bytes * held.learns)
        root, root_learning = layers.pop(-1, (0, 0))
        layer = max((whole for whole, _ in layers.values()), default=0)
        layer_learning = max((learning for _, learning in layers.values()), default=0)
        if accumulates:  # only what is being sent comes on top
            return root + max(LAYERS_AT_ONCE * layer + layer_learning, root_learning)
        within = LAYERS_AT_ONCE * layer + root_learning + GRADIENTS_AT_ONCE * layer_learning
        return root + max(within, GRADIENTS_AT_ONCE * root_learning)


def eight_bit_state(held: Held, share: int) -> int:
    """Bytes of AdamW's two moments in 8 bits: one byte each and an fp32 scale for every 256 (Dettmers et al. 2022, arXiv:2110.02861).

    bitsandbytes keeps tensors of fewer than 4,096 numbers in fp32.

    Args:
        held: the parameter, in fp32.
        share: bytes of it that are here.
    """
    numbers = round(share / held.element_bytes)
    return 8 * numbers if numbers < 4096 else 2 * (numbers + 4 * -(-numbers // 256))
