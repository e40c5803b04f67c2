"""How the rows of one optimizer step become micro-batches, from lengths alone. Sees no token and no tensor.

A layout is a list of micro-batches, each a list of sequences, each a list of indices into the step's rows. Every row of a step
stands in it exactly once, so whichever layout is taken the step's gradient is the same (law 6); they differ in padding only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

Layout = list[list[list[int]]]

# Packed rows need an explicit block mask where padded ones take attention's causal fast path, so packing must save more
# than two positions in a hundred before it is worth it.
PACKING_MARGIN = 0.02


def lay_out(rows: Sequence[int], lengths: Mapping[int, int], *, packing: bool, width: int, per_row: int, micro_batch_size: int, world_size: int = 1) -> Layout:
    """Lay out the rows of one step, over all ranks: sequences of rows of a table in which each row of the step is `per_row` rows.

    The sequences of one row of the step stay in one micro-batch, side by side: a pair is compared within its batch.

    Args:
        rows: of the step; row r is the table's r * per_row and those behind it.
        lengths: tokens of the table's rows.
        packing: whether several rows share a sequence, of up to width * per_row tokens.
        width: tokens of one row of the table at most.
        per_row: 2 for pairs.
        micro_batch_size: packed sequences, or rows of the step, per micro-batch.
        world_size: ranks; micro-batches are made small enough that each has one where the rows suffice.
    """
    units = [list(range(row * per_row, (row + 1) * per_row)) for row in rows]
    if not packing:
        widest = [max(lengths[at] for at in unit) for unit in units]
        most = min(micro_batch_size, -(-len(units) // world_size))
        return [[[at] for (unit,) in micro for at in units[unit]] for micro in length_sorted(widest, micro_batch_size=most)]
    whole = [sum(lengths[at] for at in unit) for unit in units]
    layout = [
        [[at for unit in sequence for at in units[unit]] for sequence in micro]
        for micro in packed(whole, width=width * per_row, micro_batch_size=micro_batch_size)
    ]
    sequences = [sequence for micro in layout for sequence in micro]
    most = min(micro_batch_size, -(-len(sequences) // world_size))
    return layout if most == micro_batch_size else [sequences[at : at + most] for at in range(0, len(sequences), most)]


def shared(layout: Layout, *, rank: int, world_size: int) -> Layout:
    """One rank's micro-batches: dealt out in turn, as many for each rank; empty ones where there are too few."""
    mine = layout[rank::world_size]
    return mine + [[]] * (-(-len(layout) // world_size) - len(mine))


def packed(lengths: Sequence[int], *, width: int, micro_batch_size: int) -> Layout:
    """Pack rows into as few sequences as best-fit decreasing finds, then even them out where that saves padding.

    A last sequence that is half empty is padded to its neighbours' length; the narrowest width that needs no more
    sequences spreads the same rows evenly, and is taken where it computes fewer positions.

    Args:
        lengths: tokens of each row, each in 1..width.
        width: tokens of a packed sequence at most.
        micro_batch_size: packed sequences per micro-batch.
    """
    sequences = best_fit(lengths, width)
    fewest = len(sequences)
    narrow, wide = max(max(lengths), -(-sum(lengths) // fewest)), width
    even = sequences
    while narrow < wide:
        middle = (narrow + wide) // 2
        tried = best_fit(lengths, middle)
        if len(tried) <= fewest:
            even, wide = tried, middle
        else:
            narrow = middle + 1
    layouts = [_grouped(found, lengths, micro_batch_size) for found in (sequences, even)]
    return min(layouts, key=lambda layout: positions(layout, lengths))


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Best-fit decreasing: each row, longest first, goes where it leaves the least room."""
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
    return sequences


def _grouped(sequences: list[list[int]], lengths: Sequence[int], micro_batch_size: int) -> Layout:
    """Fullest sequences together, so that each is padded to a neighbour's length."""
    ordered = sorted(sequences, key=lambda rows: -sum(lengths[row] for row in rows))
    return [ordered[at : at + micro_batch_size] for at in range(0, len(ordered), micro_batch_size)]


def length_sorted(lengths: Sequence[int], *, micro_batch_size: int) -> Layout:
    """Longest first, `micro_batch_size` rows to a micro-batch, so that each is padded to a neighbour's length."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [[[row] for row in order[at : at + micro_batch_size]] for at in range(0, len(order), micro_batch_size)]


def positions(layout: Layout, lengths: Sequence[int] | Mapping[int, int]) -> int:
    """Positions that a layout computes, padding included."""
    return sum(len(micro) * max(sum(lengths[row] for row in sequence) for sequence in micro) for micro in layout)
