"""template: rows from Jinja2 templates with typed slots; no teacher is asked.

Draws until enough distinct rows are there, and says how many there are where that cannot be. Knows nothing about how a row is filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from largeforge.contract import Reference
from largeforge.data.generator.base import Generator, Rejected, question_and_answer
from largeforge.data.generator.config import TemplateConfig
from largeforge.data.generator.template_set import TemplateSet, open_set
from largeforge.data.rows import Row
from largeforge.errors import InputError

LISTED_AT_MOST = 50_000  # ways to fill a set that are all tried, to say exactly how many rows there are


class Template(Generator):
    """Rows of one template set."""

    config: TemplateConfig

    @cached_property
    def set(self) -> TemplateSet:
        return open_set(self.config.templates, key="generator.templates")

    def check(self) -> None:
        """Read the set."""
        assert self.set.compiled

    def sources(self) -> list[Reference]:
        """The set and the files of its slots."""
        return self.set.sources()

    def rows(self) -> Iterator[Row | Rejected]:
        """Yield distinct rows. Raises InputError, with their number, where there are not as many as wanted."""
        wanted = self.config.num_rows
        if self.set.count_at_most < wanted:
            raise self._too_few(0, 0)
        kept = draw = misses = 0
        # the last of n equally likely rows takes n draws to come by: twenty times that many without a new one, and there is none
        patience = max(1_000, 20 * wanted)
        while kept < wanted:
            item = self._checked(self.set.row(self.seed, draw))
            draw += 1
            if isinstance(item, Row):
                kept, misses = kept + 1, 0
            else:
                misses += 1
                if misses >= patience:
                    raise self._too_few(kept, draw)
            yield item

    def _checked(self, row: Row) -> Row | Rejected:
        question, answer = question_and_answer(row)
        item = self.passed(row, answer)
        if isinstance(item, Rejected):
            return item
        near = self.gate.novel(question, row.origin)
        return item.with_lineage(time=self.now()) if near is None else Rejected(near[0], row.origin, near[1])

    def _too_few(self, kept: int, draws: int) -> InputError:
        """How many rows there are: counted one by one where that is quick, else what drawing found."""
        name, wanted, most = self.set.name, self.config.num_rows, self.set.count_at_most
        exact = len({row.id for row in self.set.every()}) if most <= LISTED_AT_MOST else None
        if exact is not None and exact < wanted:
            said = f"The template set {name} has {exact:,} distinct rows; generator.num_rows={wanted} asks for more."
            return InputError(said, next_step=f"generator.num_rows={exact}, or more values in the slots of {self.set.path}")
        last = max(1_000, 20 * wanted)
        said = f"The template set {name} gave {kept:,} rows that pass in {draws:,} draws, and none in the last {last:,}; {wanted:,} were wanted."
        return InputError(said, next_step=f"generator.num_rows={kept}, more values in its slots, or a lower generator.quality or higher generator.similarity")
