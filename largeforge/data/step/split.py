"""Train, validation and test, by a stable hash of what a row says: whatever the order of rows, on every machine. Leaves no row out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from largeforge.data.rows import Dropped, Row, canonical
from largeforge.data.step.base import Step
from largeforge.data.step.config import SplitConfig
from largeforge.data.step.exact_duplicates import prompt_of


class Split(Step):
    """A row's split is a function of its prompt (or of the row) and the salt alone, so that no new row moves an old one."""

    config: SplitConfig

    def ready(self) -> None:
        """Refuse shares that leave nothing to train on."""
        from largeforge.errors import InputError

        if self.config.validation + self.config.test >= 1:
            raise InputError(
                f"step.split.validation={self.config.validation:g} and step.split.test={self.config.test:g} leave nothing to train on.",
                next_step="step.split.validation=0.05 step.split.test=0.05",
            )

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Stream one shard."""
        for row in rows:
            yield replace(row, split=self.split_of(self.key(row)))

    def key(self, row: Row) -> bytes:
        """What decides where a row goes."""
        return canonical(row.content) if self.config.keep_together == "row" else canonical({"prompt": prompt_of(row)})

    def split_of(self, key: bytes) -> str:
        """Return the split of a key: hashes are even over [0, 1)."""
        digest = hashlib.blake2b(key, digest_size=8, key=self.config.salt.encode()[:64]).digest()
        point = int.from_bytes(digest, "big") / 2**64
        if point < self.config.test:
            return "test"
        return "validation" if point < self.config.test + self.config.validation else "train"
