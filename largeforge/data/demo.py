"""data=demo: plain-English wishes and the LargeForge command that grants each, made here from phrases and a seed.

Turns wishes into rows of chat and held-out examples; knows nothing about how wishes are phrased (demo_wishes.py) or tokenized.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property

from largeforge.chat import Example, Message
from largeforge.contract import Reference
from largeforge.data.config import DemoConfig
from largeforge.data.demo_wishes import HELDOUT, TRAINING, Wish, nearest, wishes, words_of
from largeforge.data.module import RowsModule
from largeforge.data.rows import ChatRow, LearntRow, PairRow


class Demo(RowsModule):
    """Rows that need no download, with held-out rows from phrasings and values that training never sees."""

    config: DemoConfig

    @cached_property
    def wishes(self) -> list[Wish]:
        """Every training row."""
        return wishes(TRAINING, self.config.num_rows, seed=self.config.seed)

    def rows(self) -> Iterator[LearntRow]:
        """Stream the training rows: a wish and its command; where pairs are learnt, beside a command that grants another wish."""
        for number, wish in enumerate(self.wishes, start=1):
            origin = f"demo row {number}"
            if self.learns == "chat":
                yield ChatRow((Message("user", wish.text), Message("assistant", wish.command)), origin)
                continue
            right, wrong = (
                ChatRow((Message("user", wish.text), Message("assistant", command)), origin, num_prompt=1, desirable=good)
                for command, good in ((wish.command, True), (self._other(number - 1), False))
            )
            if self.learns == "pairs":
                yield PairRow(right, wrong, origin)
            else:
                yield from (right, wrong)

    def _other(self, index: int) -> str:
        """The command of the next wish that asks for something else."""
        commands = [wish.command for wish in self.wishes]
        behind = (commands[(index + offset) % len(commands)] for offset in range(1, len(commands)))
        return next((command for command in behind if command != commands[index]), f"{commands[index]} plan=true")

    def fingerprint(self) -> str:
        """sha256 of all that the rows say."""
        said = json.dumps([[wish.text, wish.command] for wish in self.wishes])
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def source(self) -> Reference:
        """The training rows."""
        return Reference(kind="data", name="demo", sha256=self.fingerprint())

    def expected_rows(self) -> int:
        """Rows to be tokenized."""
        return self.config.num_rows

    def heldout(self) -> list[Example]:
        """Wishes to measure with; the note of each names its family and its distance (0 to 1) to the nearest training row."""
        trained = [words_of(wish.text) for wish in self.wishes]
        return [
            Example(
                prompt=(Message("user", wish.text),),
                answer=wish.command,
                note=f"{wish.family}; {nearest(words_of(wish.text), trained)[0]:.2f} to the nearest training row",
            )
            for wish in wishes(HELDOUT, self.config.num_heldout, seed=self.config.seed)
        ]
