"""No benchmark: nothing is asked, nothing is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from largeforge.benchmark.config import UnmeasuredConfig

if TYPE_CHECKING:
    from largeforge.chat import Example
    from largeforge.contract import Engine, Score
    from largeforge.run import Run


class Unmeasured:
    """Asks nothing."""

    measures = False

    def __init__(self, config: UnmeasuredConfig) -> None:
        self.config = config

    def run(self, engine: Engine, examples: Sequence[Example], *, title: str = "", run: Run | None = None) -> Score | None:
        return None
