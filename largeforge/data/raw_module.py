"""Raw rows of one kind as a DataModule: what `data=preference` and `data=text` share. Reading is `Rows`' business, tokens are `RowsModule`'s."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from largeforge.contract import Reference
from largeforge.data.config import RawTrainingConfig
from largeforge.data.formats import Layout
from largeforge.data.learnt import KINDS, learnt_rows
from largeforge.data.module import RowsModule
from largeforge.data.raw import Rows, RowSlice
from largeforge.data.rows import BadRow, LearntRow, Row
from largeforge.data.sources import is_mixed, paths_of


class RawModule(RowsModule):
    """Rows of one kind from files, buckets or the Hub."""

    config: RawTrainingConfig
    kind: ClassVar[Layout]
    """The layout that is read."""

    def __init__(self, config: RawTrainingConfig, **live: Any) -> None:
        super().__init__(config, **live)
        # where answers are learnt apart, a file may hold single answers with a label as well
        self.raw = Rows(config, storage=self.storage, progress=self.progress, layout=None if self.learns == "labelled" else self.kind)

    # ---- what task=prepare reads ----

    def sources(self) -> list[Reference]:
        """Where the rows come from: each path with the hash of its bytes."""
        return self.raw.sources()

    def slices(self, rows_per_slice: int, folder: Path) -> Iterator[RowSlice]:
        """Cut the rows into slices of so many raw rows, the same ones at every call."""
        return self.raw.slices(rows_per_slice, folder)

    def expected_rows(self) -> int | None:
        """Rows that will be read, where that is quick to know."""
        return self.raw.expected_rows()

    # ---- what is learnt from ----

    def rows(self) -> Iterator[LearntRow | BadRow]:
        """Stream the rows of every path in order, or mixed; at most `data.limit` good ones."""
        return self.learnt(self.raw.rows())

    def validation_rows(self) -> Iterator[LearntRow | BadRow] | None:
        """Rows of `data.validation` where it is a path."""
        return None if self._validation is None else self.learnt(self._validation.rows())

    def learnt(self, rows: Iterable[Row | BadRow]) -> Iterator[LearntRow | BadRow]:
        """What the method learns from raw rows; one of another kind is a bad row."""
        for row in rows:
            if isinstance(row, BadRow):
                yield row
            elif row.kind not in KINDS[self.learns]:
                yield BadRow(row.origin, "", f"is a row of {row.kind}; this task learns from rows of {' or '.join(KINDS[self.learns])}")
            else:
                yield from learnt_rows(row, self.learns)

    def fingerprint(self) -> str:
        """sha256 of the rows' bytes and of how they are read."""
        config = self.config
        how: list[Any] = [self.kind, self.learns, config.limit, [source.sha256 for source in self.raw.sources()]]
        how += [] if self._validation is None else [[source.sha256 for source in self._validation.sources()]]
        how += [config.mix.model_dump()] if is_mixed(config.mix) else []
        return hashlib.sha256(repr(how).encode()).hexdigest()

    @property
    def source(self) -> Reference:
        """The files or the Hub data set, with the hash of the bytes."""
        hashes = [source.sha256 for source in self.raw.sources()]
        whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        return Reference(kind="data", name=", ".join(paths_of(self.config)), revision=self.config.revision or "", sha256=whole)

    @cached_property
    def _validation(self) -> Rows | None:
        path = self.config.validation
        if not isinstance(path, str):
            return None
        plain = self.config.mix.model_copy(update={"weights": None, "caps": None})
        return Rows(self.config.model_copy(update={"path": path, "limit": None, "mix": plain}), storage=self.storage, layout=self.raw.layout)
