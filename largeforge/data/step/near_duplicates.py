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
from largeforge.data.step.verdict import noting_origins, without_repeats, write_verdict

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

        def texts() -> Iterator[str]:
            for row in noting_origins(rows, folder):
                text = row.text()
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
