"""How the rows of one optimizer step become micro-batches, from lengths alone. Sees no token and no tensor.

A layout is a list of micro-batches, each a list of sequences, each a list of indices into the step's rows. Every row of a step
stands in it exactly once, so whichever layout is taken the step's gradient is the same (law 6); they differ in padding only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

Layout = list[list[list[int]]]

# Packed rows need an explicit block mask where padded ones take attention's causal fast path, so packing must save more
# than two positions in a hundred before it is worth it.
PACKING_MARGIN = 0.02


def packed(lengths: Sequence[int], *, width: int, micro_batch_size: int) -> Layout:
    """Best-fit decreasing: each row, longest first, goes where it leaves the least room; fullest sequences stand together.

    Args:
        lengths: tokens of each row, each in 1..width.
        width: tokens of a packed sequence at most.
        micro_batch_size: packed sequences per micro-batch.
    """
    sequences: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, sequence), sorted
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[row]
        found = bisect_left(rooms, (length, -1))
        if found < len(rooms):
            room, sequence = rooms.pop(found)
        else:
            room, sequence = width, len(sequences)
            sequences.append([])
        sequences[sequence].append(row)
        if room > length:
            insort(rooms, (room - length, sequence))
    sequences.sort(key=lambda rows: -sum(lengths[row] for row in rows))
    return [sequences[at : at + micro_batch_size] for at in range(0, len(sequences), micro_batch_size)]


def length_sorted(lengths: Sequence[int], *, micro_batch_size: int) -> Layout:
    """Longest first, `micro_batch_size` rows to a micro-batch, so that each is padded to a neighbour's length."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [[[row] for row in order[at : at + micro_batch_size]] for at in range(0, len(order), micro_batch_size)]


def positions(layout: Layout, lengths: Sequence[int]) -> int:
    """Positions that a layout computes, padding included."""
    return sum(len(micro) * max(sum(lengths[row] for row in sequence) for sequence in micro) for micro in layout)
