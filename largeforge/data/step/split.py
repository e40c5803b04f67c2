"""Train, validation and test, by a stable hash of what a row says: whatever the order of rows, on every machine. Leaves no row out."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.check.base import plain
from largeforge.data.rows import Dropped, Row, canonical
from largeforge.data.step.base import Parallel, Survey, WholeStep
from largeforge.data.step.clusters import groups, survey
from largeforge.data.step.config import SplitConfig
from largeforge.data.step.exact_duplicates import prompt_of
from largeforge.data.step.minhash import Nearness
from largeforge.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class Split(WholeStep):
    """Where a row goes is a function of its question (or of the row) and the salt alone, so that no new row moves an old one.

    With keep_together=near the rows of a group go where the least hash of the group's questions says: rows are grouped that have the same
    question, whatever its case and punctuation, or whose texts are near (Jaccard similarity of word 5-grams), directly or by a chain. A row
    without such relatives goes where keep_together=prompt would put it.
    """

    config: SplitConfig

    @property
    def whole(self) -> bool:
        """Groups of near rows are known only when every row was seen."""
        return self.config.keep_together == "near"

    def ready(self) -> None:
        """Refuse shares that leave nothing to train on, and a similarity that cannot be found."""
        if self.config.validation + self.config.test >= 1:
            raise InputError(
                f"step.split.validation={self.config.validation:g} and step.split.test={self.config.test:g} leave nothing to train on.",
                next_step="step.split.validation=0.05 step.split.test=0.05",
            )
        assert self.near

    @property
    def near(self) -> Nearness:
        return Nearness(threshold=self.config.similarity, seed=self.seed)

    # ---- each row alone ----

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Stream one shard."""
        if self.whole:
            yield from super().__call__(rows)
            return
        for row in rows:
            yield replace(row, split=self.split_of(self.key(row)))

    def key(self, row: Row) -> int:
        """What decides where a row goes: 64 bits of the hash of its question, or of all of it."""
        said = canonical(row.content) if self.config.keep_together == "row" else plain("\n".join(prompt_of(row))).encode()
        return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")

    def split_of(self, key: int) -> str:
        """Return the split of a key: its hash under the salt is even over [0, 1)."""
        digest = hashlib.blake2b(key.to_bytes(8, "big"), digest_size=8, key=self.config.salt.encode()[:64]).digest()
        point = int.from_bytes(digest, "big") / 2**64
        if point < self.config.test:
            return "test"
        return "validation" if point < self.config.test + self.config.validation else "train"

    # ---- groups ----

    def survey(self, rows: Iterable[Row], folder: Path) -> None:
        """Write each row's key, and what tells which texts are near."""
        import numpy as np

        keys = array("Q")

        def texts() -> Iterator[str]:
            for row in rows:
                keys.append(self.key(row))
                yield row.text()

        survey(texts(), folder, self.near)
        np.save(folder / "keys.npy", np.array(keys, dtype=np.uint64))

    def decide(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel) -> None:
        """Write, for each shard, the least key of each row's group."""
        import numpy as np

        keys = np.concatenate([np.zeros(0, dtype=np.uint64), *(np.load(one.folder / "keys.npy") for one in surveys)])
        near = np.concatenate([np.zeros(0, dtype=np.int64), *groups(surveys, folder, parallel, self.near)])
        least = least_of_group(keys, near)
        start = 0
        for one in surveys:
            np.save(folder / f"{one.shard:05d}.npy", least[start : start + one.num_rows])
            start += one.num_rows

    def apply(self, rows: Iterable[Row], shard: int, verdict: Path) -> Iterator[Row | Dropped]:
        """Put each row where its group goes."""
        import numpy as np

        keys = np.load(verdict / f"{shard:05d}.npy").tolist()
        for row, key in zip(rows, keys, strict=True):
            yield replace(row, split=self.split_of(key))


def least_of_group(keys: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return, for each row, the least key that hangs together with it: by equal keys, by equal groups of near rows, and by chains of both.

    Args:
        keys: uint64, one a row.
        near: int64, one a row: a number that near rows share.
    """
    import numpy as np

    least: np.ndarray = keys.copy()
    _, by_key = np.unique(keys, return_inverse=True)
    _, by_near = np.unique(near, return_inverse=True)
    while True:
        before = least
        for group in (by_near, by_key):
            lowest = np.full(int(group.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
            np.minimum.at(lowest, group, least)
            least = lowest[group]
        if np.array_equal(before, least):
            return least
