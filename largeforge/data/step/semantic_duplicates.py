"""Rows that mean the same, once: each row's embedding beside each other's.

The search is exact, in tiles, over vectors that are mapped from disk; its time grows with the square of the rows. Static embeddings know which words a text
has, not their order nor what they are about: long texts that differ in one number are near (docs/duplicates.md says what was measured).
Knows nothing about where vectors come from: `embedding.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Parallel, Survey, WholeStep
from largeforge.data.step.clusters import batches
from largeforge.data.step.config import SemanticDuplicatesConfig
from largeforge.data.step.embedding import DIMENSIONS, StaticEmbedding, static_embedding
from largeforge.data.step.verdict import noting_origins, without_repeats, write_verdict
from largeforge.errors import InputError

if TYPE_CHECKING:
    import numpy as np

REASON = "duplicate_semantic"
TILE = 2048
MOST_NEIGHBOURS = 32
"""Earlier neighbours that are noted for a row; of one that has as many and all of them go, the rest are looked up."""


class SemanticDuplicates(WholeStep):
    """A row goes if the cosine of its and an earlier row's embedding is at least the threshold, and that row stays. Rows without words stay."""

    config: SemanticDuplicatesConfig

    def ready(self) -> None:
        """See that the embeddings are there."""
        StaticEmbedding()

    def survey(self, rows: Iterable[Row], folder: Path) -> None:
        """Write each row's embedding (vectors.bin: int16) and origin."""
        embedding = static_embedding()
        with (folder / "vectors.bin").open("wb") as vectors:
            for batch in batches(row.text() for row in noting_origins(rows, folder)):
                vectors.write(embedding.embed(batch).tobytes())

    def decide(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel) -> None:
        """Write, for each shard, which rows go and why. Raises InputError: more rows than max_rows."""
        import numpy as np

        num_rows = sum(one.num_rows for one in surveys)
        if num_rows > self.config.max_rows:
            raise InputError(
                f"{num_rows:,} rows are more than step.semantic_duplicates.max_rows={self.config.max_rows} allows: each is compared with each.",
                next_step="near_duplicates before semantic_duplicates in steps leaves fewer; or "
                f"step.semantic_duplicates.max_rows={num_rows}: twice the rows take four times as long",
            )
        vectors = folder / "vectors.bin"
        with vectors.open("wb") as stream:
            for one in surveys:
                stream.write((one.folder / "vectors.bin").read_bytes())
        blocks = [_Block(vectors, num_rows, first, min(first + TILE, num_rows), self.config.threshold, TILE) for first in range(0, num_rows, TILE)]
        found = parallel(_neighbours, blocks[::-1])[::-1]  # the longest first, so that no worker ends late
        rows, kept, likeness = array("q"), array("q"), array("d")
        gone = np.zeros(num_rows, dtype=bool)
        for block, (of_row, others, cosines) in zip(blocks, found, strict=True):
            begins = np.searchsorted(of_row, np.arange(block.first, block.end + 1))
            for row in np.unique(of_row).tolist():
                mine = slice(begins[row - block.first], begins[row - block.first + 1])
                staying = np.flatnonzero(~gone[others[mine]])
                if len(staying):
                    other, cosine = int(others[mine][staying[0]]), float(cosines[mine][staying[0]])
                elif len(others[mine]) < MOST_NEIGHBOURS or (first := _first_staying(block, row, gone)) is None:
                    continue
                else:
                    other, cosine = first
                gone[row] = True
                rows.append(row)
                kept.append(other)
                likeness.append(cosine)
        vectors.unlink()
        write_verdict(surveys, folder, np.array(rows, dtype=np.int64), np.array(kept, dtype=np.int64), np.array(likeness))

    def apply(self, rows: Iterable[Row], shard: int, verdict: Path) -> Iterator[Row | Dropped]:
        """Leave out what means the same as a row that stays."""
        yield from without_repeats(rows, shard, verdict, REASON)


@dataclass(frozen=True)
class _Block:
    """Rows whose earlier neighbours are wanted."""

    vectors: Path
    num_rows: int
    first: int
    end: int
    threshold: float
    tile: int


def _neighbours(block: _Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the first MOST_NEIGHBOURS neighbours before each row of a block: rows (int64, sorted), neighbours (int64, sorted in a row), cosines (float64)."""
    import numpy as np

    mine = _read(block, block.first, block.end)
    have = np.zeros(len(mine), dtype=np.int64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for begin in range(0, block.first + 1, block.tile):
        theirs = mine if begin == block.first else _read(block, begin, begin + block.tile)
        a, b, cosines = _near(mine, theirs, block.threshold)
        if begin == block.first:
            a, b, cosines = (values[b < a] for values in (a, b, cosines))
        counts = np.bincount(a, minlength=len(mine))
        nth = np.arange(len(a)) - np.repeat(np.cumsum(counts) - counts, counts)
        wanted = nth + have[a] < MOST_NEIGHBOURS
        have += counts
        found.append((a[wanted] + block.first, b[wanted] + begin, cosines[wanted]))
    rows, others, of_all = (np.concatenate(values) for values in zip(*found, strict=True))
    by_row = np.argsort(rows, kind="stable")
    return rows[by_row], others[by_row], of_all[by_row]


def _near(a: np.ndarray, b: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows of two tiles whose cosine is at least the threshold, in order, and their cosines."""
    import numpy as np

    norms_a, norms_b = (np.sqrt((tile.astype(np.float64) ** 2).sum(axis=1)) for tile in (a, b))
    least = [float(norms[norms > 0].min(initial=1)) if norms.any() else 1.0 for norms in (norms_a, norms_b)]
    products = a @ b.T  # exact (embedding.py)
    rows, columns = np.nonzero(products >= threshold * least[0] * least[1] * (1 - 1e-6))
    with np.errstate(invalid="ignore"):
        cosines = products[rows, columns] / (norms_a[rows] * norms_b[columns])
    near = cosines >= threshold - 1e-12  # a row and its twin have 1
    return rows[near], columns[near], cosines[near]


def _first_staying(block: _Block, row: int, gone: np.ndarray) -> tuple[int, float] | None:
    """The first row before this one that stays and is near to it."""
    import numpy as np

    mine = _read(block, row, row + 1)
    for begin in range(0, row, block.tile):
        end = min(begin + block.tile, row)
        _, others, cosines = _near(mine, _read(block, begin, end), block.threshold)
        staying = np.flatnonzero(~gone[begin:end][others])
        if len(staying):
            return begin + int(others[staying[0]]), float(cosines[staying[0]])
    return None


def _read(block: _Block, first: int, end: int) -> np.ndarray:
    """Rows of the vectors as float32, which holds them exactly."""
    import numpy as np

    return np.array(np.memmap(block.vectors, dtype=np.int16, mode="r", shape=(block.num_rows, DIMENSIONS))[first:end], dtype=np.float32)
