"""Plain text from the user's files or a Hub data set: what `data=text` reads, to prepare and to learn from; rehearsal mixed in where it is asked for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from functools import cached_property

from largeforge.data.config import TextConfig
from largeforge.data.raw import Rows
from largeforge.data.raw_module import RawModule
from largeforge.data.rows import BadRow, LearntRow
from largeforge.errors import InputError


class Text(RawModule):
    """Texts: rows of `{"text": ...}`, and `.txt` files in passages.

    Rehearsal draws a share of the rows from general texts, again from their beginning when they end, so that what the model knew is not
    forgotten (experience replay; Ibrahim et al. 2024, arXiv:2403.08763, section 4.2).
    """

    config: TextConfig
    kind = "text"

    def rows(self) -> Iterator[LearntRow | BadRow]:
        """Stream the texts, each followed by as many of the rehearsal as its draw says."""
        share = self.config.rehearsal.share
        if self._rehearsal is None:
            yield from super().rows()
            return
        draw = random.Random(f"rehearsal {self.config.mix.seed}")
        general = self._again(self._rehearsal)
        for row in super().rows():
            yield row
            while draw.random() < share:
                yield next(general)

    def fingerprint(self) -> str:
        """Of the texts, and of what is rehearsed."""
        own = super().fingerprint()
        if self._rehearsal is None:
            return own
        general = [reference.sha256 for reference in self._rehearsal.sources()]
        return hashlib.sha256(repr([own, general, self.config.rehearsal.share, self.config.mix.seed]).encode()).hexdigest()

    def expected_rows(self) -> int | None:
        """Rows that will be read, where that is quick to know."""
        return super().expected_rows() if self._rehearsal is None else None

    @cached_property
    def _rehearsal(self) -> Rows | None:
        asked = self.config.rehearsal
        if (asked.path is None) != (asked.share == 0):
            raise InputError(
                f"data.rehearsal.path = {asked.path} and data.rehearsal.share = {asked.share:g} belong together.",
                next_step="data.rehearsal.path=general.jsonl data.rehearsal.share=0.1, or neither",
            )
        if asked.path is None:
            return None
        config = self.config.model_copy(update={"path": asked.path, "limit": None, "mix": self.config.mix.model_copy(update={"weights": None, "caps": None})})
        return Rows(config, storage=self.storage, layout=self.kind)

    def _again(self, rows: Rows) -> Iterator[LearntRow | BadRow]:
        first = True
        while True:
            good = 0
            for row in self.learnt(rows.rows()):
                good += not isinstance(row, BadRow)
                if first or not isinstance(row, BadRow):  # a bad one is told once
                    yield row
            if not good:
                raise InputError(
                    f"data.rehearsal.path = {self.config.rehearsal.path} holds no text that can be used.", next_step="give a file with rows of text"
                )
            first = False
