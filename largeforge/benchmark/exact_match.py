"""Exact match: the share of held-out prompts that are answered with exactly the expected text.

Asks any engine; knows nothing about models. Only whitespace around an answer is forgiven.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from largeforge.benchmark.config import ExactMatchConfig
from largeforge.chat import ChatRequest, Example
from largeforge.contract import Score

if TYPE_CHECKING:
    from largeforge.contract import Engine
    from largeforge.run import Run


class ExactMatch:
    """Asks greedily, compares, counts."""

    measures = True

    def __init__(self, config: ExactMatchConfig) -> None:
        self.config = config

    def run(self, engine: Engine, examples: Sequence[Example], *, title: str = "", run: Run | None = None) -> Score | None:
        """Return `exact_match` (a share from 0 to 1) and `num_rows`, with every answer in the order of `examples`; None without examples.

        Raises:
            Interrupted: a stop was asked for.
        """
        asked = list(examples[: self.config.limit])
        if not asked:
            return None
        # shortest first: batches are of equal length, and the bar moves with every batch
        order = sorted(range(len(asked)), key=lambda number: sum(len(message.content) for message in asked[number].prompt))
        requests = [ChatRequest(asked[number].prompt, max_tokens=self.config.max_tokens) for number in order]
        answers = [""] * len(asked)
        num_right = 0
        bar = run.progress.bar(f"exact match {title}".strip(), total=len(asked), unit="rows") if run is not None else None
        try:
            for number, answer in zip(order, engine.answers(requests), strict=True):
                answers[number] = answer.text.strip()
                num_right += answers[number] == asked[number].answer.strip()
                if bar is not None:
                    bar.advance(1, right=num_right)
                if run is not None and run.stop_asked:
                    raise run.interrupt(f"Stopped while measuring {title}.".replace(" .", "."))
        finally:
            if bar is not None:
                bar.close()
        correct = [answer == example.answer.strip() for answer, example in zip(answers, asked, strict=True)]
        return Score({"exact_match": sum(correct) / len(correct), "num_rows": float(len(correct))}, answers, correct)
