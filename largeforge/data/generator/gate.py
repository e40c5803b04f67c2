"""What a row must pass while rows are being made: length, quality, and that nothing like it was made before. Knows nothing about who made it.

Similarity is of questions (every turn before the answer), as in Self-Instruct (Wang et al. 2022), which drops what has a ROUGE-L of 0.7 or more with
anything in the pool; here it is the estimated Jaccard similarity of word n-grams, which stays fast as the pool grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from largeforge.config.places import shipped
from largeforge.config.yaml_file import read_yaml
from largeforge.data.rows import Row

if TYPE_CHECKING:
    from largeforge.data.generator.config import GeneratorConfig

NUM_PERM = 128


class Gate:
    """Remembers every question that was let through, and every row."""

    def __init__(self, config: GeneratorConfig, *, seed: int) -> None:
        self.config = config
        self._index: Any = None
        self._rows: set[str] = set()
        if config.similarity < 1:
            from largeforge.data.step.online import NearIndex

            self._index = NearIndex(threshold=config.similarity, n=config.similarity_words, num_perm=NUM_PERM, seed=seed)

    @cached_property
    def _quality(self) -> Callable[[Row], tuple[float, Sequence[Any]]]:
        """The score of the step quality, with the settings that ship."""
        from largeforge.data.step.config import QualityConfig
        from largeforge.data.step.quality import Quality

        settings = read_yaml(shipped("conf") / "data" / "step" / "quality.yaml").values
        return Quality(QualityConfig.model_validate(settings)).judged

    def novel(self, question: str, origin: str) -> tuple[str, str] | None:
        """None where nothing like it was asked before, which is remembered; else why it is refused. Asked once for each question."""
        if self._index is None:
            return None
        near = self._index.add_if_new(question, origin)
        return None if near is None else ("too_similar", f"like {near}")

    def refusal(self, row: Row, answer: str, *, min_words: int = 0) -> tuple[str, str] | None:
        """Why a row is not kept (reason, detail); None where it is, and then it is remembered."""
        words = len(answer.split())
        if words < min_words:
            return "too_short", f"{words} words"
        if self.config.quality > 0:
            found, rules = self._quality(row)
            if found < self.config.quality:
                return "low_quality", f"{found:.2f}: {', '.join(map(str, rules))}"
        if row.id in self._rows:
            return "repeated", ""
        self._rows.add(row.id)
        return None
