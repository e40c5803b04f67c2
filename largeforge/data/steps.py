"""Optimizer steps as a pure function of (rows, window): order, layout, batches, loader. Reads tokens only of the steps that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from largeforge.batch import AnswerBatch, BatchShape, Learns, StepWindow, TokenBatch
from largeforge.data.batches import collate, collate_answers, empty
from largeforge.data.curriculum import paced_order
from largeforge.data.layout import PACKING_MARGIN, Layout, lay_out, positions, shared

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import DataLoader

    from largeforge.data.annotations import AnnotationTable
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


def step_rows(num_rows: int, window: StepWindow, step: int, *, paced_by: Pacing | None = None) -> list[int]:
    """Rows of one optimizer step of the run, counted from 0. The last step of an epoch may be short.

    Args:
        num_rows: of the data set.
        window: batch size and seed.
        step: counted from 0.
        paced_by: what orders the first epoch; None draws it like any other.
    """
    steps_per_epoch = -(-num_rows // window.batch_size)
    epoch, index = divmod(step, steps_per_epoch)
    order = paced_by.order(window.seed) if paced_by is not None and epoch == 0 else epoch_order(num_rows, window.seed, epoch)
    return [int(row) for row in order[index * window.batch_size : (index + 1) * window.batch_size]]


def compare(lengths: np.ndarray, window: StepWindow, *, width: int, per_row: int = 1) -> Fills:
    """How full both layouts would be: from lengths, order and batch sizes; never from a timing, nor from where a run was resumed."""
    num_rows = len(lengths) // per_row
    steps_per_epoch = -(-num_rows // window.batch_size)
    tokens = in_packed = in_sorted = 0
    for step in range(min(steps_per_epoch, COMPARED_WINDOWS)):
        rows = step_rows(num_rows, window, step)
        sizes = {at: int(lengths[at]) for row in rows for at in range(row * per_row, (row + 1) * per_row)}
        tokens += sum(sizes.values())
        size = {"width": width, "per_row": per_row, "micro_batch_size": window.micro_batch_size}
        in_packed += positions(lay_out(rows, sizes, packing=True, **size), sizes)
        in_sorted += positions(lay_out(rows, sizes, packing=False, **size), sizes)
    return Fills(tokens / in_packed, tokens / in_sorted)


@dataclass(frozen=True)
class Pacing:
    """What a curriculum orders rows by, and how it is read where it is needed: in a loader's worker, too.

    Args:
        table: its lengths are the difficulty, where there is no other.
        difficulty: values by row, computed before training; None takes lengths.
        per_row: sequences of a row, whose difficulties are added.
    """

    table: TokenTable
    difficulty: AnnotationTable | None
    per_row: int = 1

    def order(self, seed: int) -> np.ndarray:
        """The first epoch's order: easy rows first, harder ones let in as the epoch goes on."""
        path = self.table.path if self.difficulty is None else self.difficulty.path
        return _paced(self, str(path), path.stat().st_mtime_ns, seed)

    def values(self) -> np.ndarray:
        """float64, one a row."""
        import numpy as np

        of_sequence = self.table.lengths if self.difficulty is None else self.difficulty.scalars("difficulty")
        summed: np.ndarray = np.asarray(of_sequence, dtype=np.float64).reshape(-1, self.per_row).sum(axis=1)
        return summed


@lru_cache(maxsize=2)
def _paced(pacing: Pacing, path: str, changed: int, seed: int) -> np.ndarray:
    return paced_order(pacing.values(), seed=seed)


@dataclass(frozen=True)
class Steps:
    """The steps of a window over a table of tokens, by number: what a loader's workers are given.

    Args:
        table: token ids and masks, memory-mapped; a pair's answers stand side by side.
        window: which steps, and whose share of each.
        width: tokens of a packed sequence at most (of pairs: twice as many).
        packing: whether rows are packed.
        pad_id: what padding holds.
        learns: what a micro-batch is made for.
        notes: what was computed about the rows before training.
        paced_by: what orders the first epoch; None is nothing.
    """

    table: TokenTable
    window: StepWindow
    width: int
    packing: bool
    pad_id: int
    learns: Learns = "chat"
    notes: AnnotationTable | None = None
    paced_by: Pacing | None = None

    def __len__(self) -> int:
        return self.window.num_steps

    def __getitem__(self, step: int) -> list[TokenBatch | AnswerBatch]:
        rows = self.rows(step)
        partner = dict(zip(rows, [*rows[1:], rows[0]], strict=True)) if self.learns == "labelled" and len(rows) > 1 else None
        return [self._batch(micro, partner) for micro in self._layout(rows)]

    def rows(self, step: int) -> list[int]:
        """Rows of one step, over all ranks."""
        return step_rows(len(self.table) // self.per_row, self.window, step, paced_by=self.paced_by)

    @property
    def per_row(self) -> int:
        """Sequences of one row."""
        return 2 if self.learns == "pairs" else 1

    def shapes(self, step: int) -> list[BatchShape]:
        """The same step's shapes, without reading a token."""
        lengths, supervised = self.table.lengths, self.table.supervised_counts
        shapes = []
        for micro in self._layout(self.rows(step)):
            widths = [sum(int(lengths[at]) for at in sequence) for sequence in micro] or [0]
            num_supervised = sum(int(supervised[at]) for sequence in micro for at in sequence)
            shapes.append(BatchShape(len(widths), max(widths), num_supervised, sum(widths), self.packing))
        return shapes

    def _batch(self, micro: list[list[int]], partner: dict[int, int] | None) -> TokenBatch | AnswerBatch:
        return make_batch(self.table, micro, pad_id=self.pad_id, learns=self.learns, notes=self.notes, partner=partner, width=self.width)

    def _layout(self, rows: list[int]) -> Layout:
        """This rank's micro-batches, of sequences of rows of the table; an empty one where it has nothing to do."""
        lengths = {at: int(self.table.lengths[at]) for row in rows for at in range(row * self.per_row, (row + 1) * self.per_row)}
        window = self.window
        whole = lay_out(
            rows,
            lengths,
            packing=self.packing,
            width=self.width,
            per_row=self.per_row,
            micro_batch_size=window.micro_batch_size,
            world_size=window.world_size,
        )
        return shared(whole, rank=window.rank, world_size=window.world_size)


@dataclass(frozen=True)
class MicroBatches:
    """Sequences of a table in a given order, in padded micro-batches: what validation reads, and what is asked before training.

    Args:
        table: token ids and masks.
        micros: rows of the table in each micro-batch; none where a rank has nothing to do.
        pad_id: what padding holds.
        learns: what a micro-batch is made for.
        notes: what was computed about the rows before training.
        width: tokens of a sequence at most.
    """

    table: TokenTable
    micros: tuple[tuple[int, ...], ...]
    pad_id: int
    learns: Learns = "chat"
    notes: AnnotationTable | None = None
    width: int = 0

    def __len__(self) -> int:
        return len(self.micros)

    def __getitem__(self, index: int) -> list[TokenBatch | AnswerBatch]:
        rows = list(self.micros[index])
        partner = dict(zip(rows, [*rows[1:], rows[0]], strict=True)) if self.learns == "labelled" and len(rows) > 1 else None
        sequences = [[row] for row in rows]
        return [make_batch(self.table, sequences, pad_id=self.pad_id, learns=self.learns, notes=self.notes, partner=partner, width=self.width)]


def make_batch(
    table: TokenTable,
    sequences: list[list[int]],
    *,
    pad_id: int,
    learns: Learns,
    notes: AnnotationTable | None = None,
    partner: dict[int, int] | None = None,
    width: int = 0,
) -> TokenBatch | AnswerBatch:
    """One micro-batch from rows of a table, of the kind that `learns` asks for.

    Args:
        table: token ids and masks.
        sequences: rows of the table in each sequence; none at all makes an empty batch.
        pad_id: what padding holds.
        learns: "pairs" and "labelled" make an AnswerBatch.
        notes: what was computed about the rows before training.
        partner: whose answer each row is mismatched with; None makes no mismatched ones.
        width: tokens that a mismatched sequence is cut to.
    """
    order = [row for sequence in sequences for row in sequence]
    annotations = notes.read(order) if notes is not None else {}
    if learns not in ("pairs", "labelled"):
        return (
            collate([[table.tokens(row) for row in sequence] for sequence in sequences], pad_id=pad_id, annotations=annotations)
            if order
            else empty(annotations)
        )
    found = collate_answers(
        [[table.tokens(row) for row in sequence] for sequence in sequences],
        [bool(table.desirable[row]) for row in order],
        pad_id=pad_id,
        annotations=annotations,
    )
    if partner is not None:
        crossed = [[_crossed(table.tokens(row), table.tokens(partner[row]), width)] for row in order]
        found.mismatched = collate_answers(crossed, [True] * len(order), pad_id=pad_id, annotations={})
    return found


def _crossed(asked: tuple[np.ndarray, np.ndarray], answered: tuple[np.ndarray, np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompt of one row with the answer of another, cut to `width`."""
    import numpy as np

    (prompt, asked_flags), (answer, answer_flags) = asked, answered
    begin, end = int(asked_flags.argmax()), int(answer_flags.argmax())
    ids = np.concatenate([prompt[:begin], answer[end:]])[:width]
    return ids, np.concatenate([np.zeros(begin, dtype=bool), answer_flags[end:]])[:width]


def loader(items: Any, order: Sequence[int], *, num_workers: int) -> DataLoader[list[Any]]:
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


def _as_it_is(item: list[Any]) -> list[Any]:
    return item


def step_shapes(steps: Steps) -> Iterator[list[BatchShape]]:
    """Shapes of the steps that a window still has to take."""
    return (steps.shapes(step) for step in range(steps.window.start_step, steps.window.num_steps))
