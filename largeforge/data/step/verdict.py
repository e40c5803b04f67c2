"""Which rows go because they repeat others, and which: how steps that compare rows write it down, shard by shard, and follow it.

Knows nothing about what makes two rows alike.

    survey:   origins.bin/.npy where each row came from
    verdict:  <shard>-rows.npy the rows that go, sorted · <shard>-why.bin/.npy what each of them repeats
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Survey
from largeforge.data.step.ragged import Ragged, RaggedWriter

if TYPE_CHECKING:
    import numpy as np


def noting_origins(rows: Iterable[Row], folder: Path) -> Iterator[Row]:
    """Give every row of a shard on, and write where it came from."""
    with RaggedWriter(folder, "origins") as origins:
        for row in rows:
            origin = row.origin.encode()
            origins.add(origin, [len(origin)])
            yield row


def write_verdict(surveys: Sequence[Survey], folder: Path, rows: np.ndarray, kept: np.ndarray, likeness: np.ndarray) -> None:
    """Write which rows go.

    Args:
        surveys: of every shard, with the rows' origins.
        folder: of the verdict.
        rows: int64, the rows that go, counted over all shards, in any order.
        kept: int64, the row that each of them repeats.
        likeness: float64, how alike the two are.
    """
    import numpy as np

    by_row = np.argsort(rows, kind="stable")
    rows, kept, likeness = rows[by_row], kept[by_row], likeness[by_row]
    sizes = np.array([one.num_rows for one in surveys], dtype=np.int64)
    ends = np.cumsum(sizes)
    origins = _origins(surveys, ends, kept)
    for number, one in enumerate(surveys):
        before = ends[number] - sizes[number]
        first, last = (int(np.searchsorted(rows, edge)) for edge in (before, ends[number]))
        np.save(folder / f"{one.shard:05d}-rows.npy", rows[first:last] - before)
        with RaggedWriter(folder, f"{one.shard:05d}-why") as why:
            for place in range(first, last):
                told = b"near to %b, similarity %.2f" % (origins[place], likeness[place])
                why.add(told, [len(told)])


def without_repeats(rows: Iterable[Row], shard: int, verdict: Path, reason: str) -> Iterator[Row | Dropped]:
    """Stream one shard under what `write_verdict` wrote."""
    import numpy as np

    why = Ragged(verdict, f"{shard:05d}-why", np.uint8)
    numbers = {place: number for number, place in enumerate(np.load(verdict / f"{shard:05d}-rows.npy").tolist())}
    for place, row in enumerate(rows):
        yield Dropped(row, reason, why[numbers[place]].tobytes().decode()) if place in numbers else row


def _origins(surveys: Sequence[Survey], ends: np.ndarray, rows: np.ndarray) -> list[bytes]:
    """Where rows came from; each shard's file is opened once."""
    import numpy as np

    found = [b""] * len(rows)
    shards = np.searchsorted(ends, rows, side="right")
    for number in np.unique(shards).tolist():
        origins = Ragged(surveys[number].folder, "origins", np.uint8)
        first = int(ends[number]) - surveys[number].num_rows
        for place in np.flatnonzero(shards == number).tolist():
            found[place] = origins[int(rows[place]) - first].tobytes()
    return found
