"""Hidden states of chosen layers at supervised positions, and how a student's are matched with a teacher's.

Knows nothing about where batches come from. Shapes: B sequences, T positions, N supervised tokens, S and H the widths of student and teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from largeforge.errors import InputError

SEED = 0x41D  # of the projections: the same at every start, whatever was drawn before


def blocks(network: Any) -> list[nn.Module]:
    """The network's layers in order, adapted or not."""
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    depth = int(base.config.num_hidden_layers)
    return next(list(module) for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == depth)


@contextmanager
def watching(network: Any, layers: Sequence[int], where_BT: Tensor) -> Iterator[dict[int, Tensor]]:
    """Keep what the layers (counted from 1) give out at the chosen positions, [N, width] each, for forward passes inside the block; there once it ends."""
    found: dict[int, Tensor] = {}
    every = blocks(network)

    def keep(number: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if states.shape[:2] == where_BT.shape:  # a head that tries the network out does so on a batch of its own
                found[number] = states

        return hook

    handles = [every[number - 1].register_forward_hook(keep(number)) for number in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    # not inside the hook: activations that are computed again would be computed without it
    for number, states in found.items():
        found[number] = states[where_BT]


def layer_map(wanted: str | Mapping[int, int], student: Any, teacher: Any) -> dict[int, int]:
    """Which layer of the student (counted from 1) matches which of the teacher.

    Args:
        wanted: "even" spreads the student's layers evenly over the teacher's, the last on the last; else the map itself.
        student: network.
        teacher: network.

    Raises:
        InputError: a layer that one of them does not have.
    """
    depth, depths = len(blocks(student)), len(blocks(teacher))
    if isinstance(wanted, str):
        return {number: max(1, round(number * depths / depth)) for number in range(1, depth + 1)}
    found = {int(mine): int(theirs) for mine, theirs in sorted(wanted.items())}
    wrong = [f"{mine}: {theirs}" for mine, theirs in found.items() if not (1 <= mine <= depth and 1 <= theirs <= depths)]
    if wrong or not found:
        raise InputError(
            f"method.hidden.layers = {{{', '.join(wrong)}}}: the student has layers 1 to {depth}, the teacher 1 to {depths}.",
            next_step="method.hidden.layers=even, or a map such as {1: 2, 2: 4}",
        )
    return found


class Projections(nn.Module):
    """A learned linear map from the student's width to the teacher's for every matched layer (Romero et al. 2015, arXiv:1412.6550; Jiao et al. 2020,
    arXiv:1909.10351, eq. 8). They are no part of the trained model; where widths are equal they begin as the identity."""

    def __init__(self, layers: Mapping[int, int], *, width: int, teachers_width: int) -> None:
        super().__init__()
        self.layers = dict(layers)
        self.maps = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            for number in self.layers:
                linear = nn.Linear(width, teachers_width, bias=False)
                nn.init.eye_(linear.weight) if width == teachers_width else nn.init.normal_(linear.weight, std=width**-0.5)
                self.maps[str(number)] = linear

    def forward(self, mine: Mapping[int, Tensor], theirs: Mapping[int, Tensor], *, upto: int) -> Tensor:
        """Sum over tokens of the relative squared error, averaged over the `upto` lowest matched layers (scalar, fp32); states by the student's layer.

        ``|W s - t|^2 / |t|^2`` of each token, with the student's state s and the teacher's t: layers count alike, however large their states are.
        """
        sums = []
        for number in list(self.layers)[:upto]:
            target = theirs[number].float()
            error = (self.maps[str(number)](mine[number]).float() - target).square().sum(-1)
            sums.append((error / target.square().sum(-1).clamp(min=1e-12)).sum())
        return torch.stack(sums).sum() / upto
