"""Rows that say nearly the same, once: MinHash over word n-grams finds candidates, their exact likeness decides.

Broder, On the resemblance and containment of documents, 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
Knows nothing about how candidates are found and kept on disk: `clusters.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Parallel, Survey, WholeStep
from largeforge.data.step.clusters import repeats, survey
from largeforge.data.step.config import NearDuplicatesConfig
from largeforge.data.step.minhash import Nearness
from largeforge.data.step.ragged import Ragged, RaggedWriter

if TYPE_CHECKING:
    import numpy as np

REASON = "duplicate_near"


class NearDuplicates(WholeStep):
    """A row goes if it is within the threshold of an earlier one that stays: in the order of rows, or the longest first (`keep`).

    So every row that goes is near to one that stays; of a chain a ~ b ~ c whose ends are not near, a and c stay. Empty rows stay.
    """

    config: NearDuplicatesConfig

    @property
    def near(self) -> Nearness:
        """When two rows are near. Raises InputError: too few permutations for the threshold."""
        config = self.config
        return Nearness(threshold=config.threshold, n=config.ngram, num_perm=config.num_perm, verify=config.verify, seed=self.seed)

    def ready(self) -> None:
        """Refuse settings that would miss near rows."""
        assert self.near

    def survey(self, rows: Iterable[Row], folder: Path) -> None:
        """Write what `clusters.py` needs, and each row's origin and length."""
        import numpy as np

        lengths = array("q")
        with RaggedWriter(folder, "origins") as origins:

            def texts() -> Iterator[str]:
                for row in rows:
                    origin, text = row.origin.encode(), row.text()
                    origins.add(origin, [len(origin)])
                    lengths.append(len(text))
                    yield text

            survey(texts(), folder, self.near)
        np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int64))

    def decide(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel) -> None:
        """Write, for each shard, which rows go and why."""
        import numpy as np

        rows, kept, likeness = array("q"), array("q"), array("d")
        for repeat in repeats(surveys, folder, parallel, self.near, order=self._order(surveys)):
            rows.append(repeat.row)
            kept.append(repeat.kept)
            likeness.append(repeat.similarity)
        write_verdict(surveys, folder, np.array(rows, dtype=np.int64), np.array(kept, dtype=np.int64), np.array(likeness))

    def apply(self, rows: Iterable[Row], shard: int, verdict: Path) -> Iterator[Row | Dropped]:
        """Leave out what is near to a row that stays."""
        yield from without_repeats(rows, shard, verdict, REASON)

    def _order(self, surveys: Sequence[Survey]) -> np.ndarray | None:
        """Every row once, those first that stay before others; None is as they lie."""
        import numpy as np

        if self.config.keep == "first":
            return None
        lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(np.load(one.folder / "lengths.npy") for one in surveys)])
        return np.argsort(-lengths, kind="stable")


def write_verdict(surveys: Sequence[Survey], folder: Path, rows: np.ndarray, kept: np.ndarray, likeness: np.ndarray) -> None:
    """Write, for each shard, the rows that go (<shard>-rows.npy, sorted) and what they repeat (<shard>-why.bin, .npy).

    Args:
        surveys: with the rows' origins.
        folder: of the verdict.
        rows: int64, counted over all shards.
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
        first, last = (int(np.searchsorted(rows, edge)) for edge in (ends[number] - sizes[number], ends[number]))
        np.save(folder / f"{one.shard:05d}-rows.npy", rows[first:last] - (ends[number] - sizes[number]))
        with RaggedWriter(folder, f"{one.shard:05d}-why") as why:
            for place in range(first, last):
                told = b"near to %b, similarity %.2f" % (origins[place], likeness[place])
                why.add(told, [len(told)])


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


def without_repeats(rows: Iterable[Row], shard: int, verdict: Path, reason: str) -> Iterator[Row | Dropped]:
    """Stream one shard under what `write_verdict` wrote."""
    import numpy as np

    why = Ragged(verdict, f"{shard:05d}-why", np.uint8)
    numbers = {place: number for number, place in enumerate(np.load(verdict / f"{shard:05d}-rows.npy").tolist())}
    for place, row in enumerate(rows):
        yield Dropped(row, reason, why[numbers[place]].tobytes().decode()) if place in numbers else row
