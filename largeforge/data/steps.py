"""Optimizer steps as a pure function of (rows, window): order, layout, tensors, loader. Reads tokens only of the steps that are asked for.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from largeforge.contract import BatchShape, StepWindow, TokenBatch
from largeforge.data.layout import PACKING_MARGIN, Layout, length_sorted, packed, positions

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import DataLoader

    from largeforge.data.cache import TokenTable

# Windows that are compared before a choice is made: enough for the second digit of a fill, and quick on a million rows.
COMPARED_WINDOWS = 64
HELD_ROWS = 1_000_000  # whose order is drawn as a whole: 8 MB


@dataclass(frozen=True)
class Fills:
    """Share of positions that hold a token, over the first epoch's windows, for both layouts."""

    packed: float
    length_sorted: float

    @property
    def packing(self) -> bool:
        """True where packing fills clearly better."""
        return self.packed > self.length_sorted + PACKING_MARGIN


class FarOrder:
    """A permutation of many rows that is never held: each place is computed when it is asked for.

    A Feistel network over the next even number of bits, applied again where it leads outside (Black and Rogaway, Ciphers with arbitrary finite
    domains, 2002). Memory and time do not grow with the rows.

    Args:
        num_rows: at least 2.
        seed, epoch: of the round keys.
    """

    ROUNDS = 6

    def __init__(self, num_rows: int, seed: int, epoch: int) -> None:
        import numpy as np

        self.num_rows = num_rows
        self.half = -(-(num_rows - 1).bit_length() // 2)
        self.keys = np.random.Generator(np.random.PCG64([seed, epoch])).integers(0, 2**63, size=self.ROUNDS, dtype=np.uint64)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, places: slice) -> np.ndarray:
        """int64 rows that stand at these places."""
        import numpy as np

        rows: np.ndarray = self._once(np.arange(*places.indices(self.num_rows), dtype=np.uint64))
        while (outside := rows >= self.num_rows).any():
            rows[outside] = self._once(rows[outside])
        return rows.astype(np.int64)

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        import numpy as np

        half, mask = np.uint64(self.half), np.uint64((1 << self.half) - 1)
        left, right = numbers >> half, numbers & mask
        for key in self.keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        whole: np.ndarray = (left << half) | right
        return whole


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray | FarOrder:
    """The order of one epoch's rows: a permutation that is a function of its arguments alone; held in memory up to `HELD_ROWS` rows."""
    import numpy as np

    if num_rows > HELD_ROWS:
        return FarOrder(num_rows, seed, epoch)
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_rows)
    order.setflags(write=False)
    return order


def step_rows(num_rows: int, window: StepWindow, step: int) -> list[int]:
    """Rows of one optimizer step of the run, counted from 0. The last step of an epoch may be short."""
    steps_per_epoch = -(-num_rows // window.batch_size)
    epoch, index = divmod(step, steps_per_epoch)
    order = epoch_order(num_rows, window.seed, epoch)
    return [int(row) for row in order[index * window.batch_size : (index + 1) * window.batch_size]]


def compare(lengths: np.ndarray, window: StepWindow, *, width: int) -> Fills:
    """How full both layouts would be: from lengths, order and batch sizes; never from a timing, nor from where a run was resumed."""
    steps_per_epoch = -(-len(lengths) // window.batch_size)
    tokens = in_packed = in_sorted = 0
    for step in range(min(steps_per_epoch, COMPARED_WINDOWS)):
        sizes = [int(lengths[row]) for row in step_rows(len(lengths), window, step)]
        tokens += sum(sizes)
        in_packed += positions(packed(sizes, width=width, micro_batch_size=window.micro_batch_size), sizes)
        in_sorted += positions(length_sorted(sizes, micro_batch_size=window.micro_batch_size), sizes)
    return Fills(tokens / in_packed, tokens / in_sorted)


@dataclass(frozen=True)
class Steps:
    """The steps of a window over a table of tokens, by number: what a loader's workers are given.

    Args:
        table: token ids and masks, memory-mapped.
        window: which steps.
        width: tokens of a packed sequence at most.
        packing: whether rows are packed.
        pad_id: what padding holds.
    """

    table: TokenTable
    window: StepWindow
    width: int
    packing: bool
    pad_id: int

    def __len__(self) -> int:
        return self.window.num_steps

    def __getitem__(self, step: int) -> list[TokenBatch]:
        rows, layout = self._layout(step)
        return [collate(self.table, [[rows[index] for index in sequence] for sequence in micro], pad_id=self.pad_id) for micro in layout]

    def shapes(self, step: int) -> list[BatchShape]:
        """The same step's shapes, without reading a token."""
        rows, layout = self._layout(step)
        lengths, supervised = self.table.lengths, self.table.supervised_counts
        shapes = []
        for micro in layout:
            widths = [sum(int(lengths[rows[index]]) for index in sequence) for sequence in micro]
            num_supervised = sum(int(supervised[rows[index]]) for sequence in micro for index in sequence)
            shapes.append(BatchShape(len(micro), max(widths), num_supervised, sum(widths), self.packing))
        return shapes

    def _layout(self, step: int) -> tuple[list[int], Layout]:
        rows = step_rows(len(self.table), self.window, step)
        lengths = [int(self.table.lengths[row]) for row in rows]
        if self.packing:
            return rows, packed(lengths, width=self.width, micro_batch_size=self.window.micro_batch_size)
        return rows, length_sorted(lengths, micro_batch_size=self.window.micro_batch_size)


@dataclass(frozen=True)
class MicroBatches:
    """Rows of a table in a given order, in padded micro-batches: what validation reads."""

    table: TokenTable
    order: tuple[int, ...]
    micro_batch_size: int
    pad_id: int

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.micro_batch_size)

    def __getitem__(self, index: int) -> list[TokenBatch]:
        rows = self.order[index * self.micro_batch_size : (index + 1) * self.micro_batch_size]
        return [collate(self.table, [[row] for row in rows], pad_id=self.pad_id)]


def collate(table: TokenTable, sequences: Sequence[Sequence[int]], *, pad_id: int) -> TokenBatch:
    """Lay rows of the table side by side, in sequences padded on the right to the longest.

    Position ids start again at every row; padding goes on counting, so that it belongs to the row before it.
    """
    import torch

    read = [[table.tokens(row) for row in sequence] for sequence in sequences]
    width = max(sum(len(ids) for ids, _ in sequence) for sequence in read)
    ids_BT = torch.full((len(read), width), pad_id, dtype=torch.int64)
    positions_BT = torch.zeros((len(read), width), dtype=torch.int64)
    supervised_BT = torch.zeros((len(read), width), dtype=torch.bool)
    num_tokens = 0
    for b, sequence in enumerate(read):
        at = begin = 0
        for ids, supervised in sequence:
            begin, at = at, at + len(ids)
            ids_BT[b, begin:at] = torch.from_numpy(ids)
            supervised_BT[b, begin:at] = torch.from_numpy(supervised)
            positions_BT[b, begin:at] = torch.arange(at - begin)
        positions_BT[b, begin:] = torch.arange(width - begin)
        num_tokens += at
    return TokenBatch(ids_BT, positions_BT, supervised_BT, num_examples=sum(len(s) for s in sequences), num_tokens=num_tokens)


def loader(items: Any, order: Sequence[int], *, num_workers: int) -> DataLoader[list[TokenBatch]]:
    """A DataLoader over whole items in the given order.

    It has a generator of its own: making an iterator draws from it and leaves the global one alone, so a resumed run's
    dropout goes on as it would have.
    """
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        items,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        collate_fn=_as_it_is,
    )


def _as_it_is(item: list[TokenBatch]) -> list[TokenBatch]:
    return item


def step_shapes(steps: Steps) -> Iterator[list[BatchShape]]:
    """Shapes of the steps that a window still has to take."""
    return (steps.shapes(step) for step in range(steps.window.start_step, steps.window.num_steps))
