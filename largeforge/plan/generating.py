"""What task=generate will ask, and what a remote teacher would charge for it. Reads prompts, asks nothing, loads no model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from largeforge.contract import Progress

if TYPE_CHECKING:
    from largeforge.task.data_config import GenerateConfig

MILLION = 1_000_000


class GeneratingPlan:
    """Plans task=generate.

    Args:
        config: the whole typed config.
    """

    fits = True  # nothing is loaded here; what the teacher's model takes, plan=true of task=chat says

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config
        self.rows: list[tuple[str, str]] = []

    def __call__(self, *, estimate: Any, progress: Progress | None = None) -> GeneratingPlan:
        """Return the plan of an estimate: num_requests, num_requests_at_most, prompt_tokens, completion_tokens (of one request)."""
        generator, engine = self.config.generator, self.config.engine
        self.rows = [("rows", f"{generator.num_rows:,}"), ("requests", f"{estimate.num_requests:,}, where everything is kept")]
        if not estimate.num_requests:
            self.rows[1] = ("requests", "none: no teacher is asked")
            return self
        most = estimate.num_requests_at_most
        asked, said = estimate.num_requests * estimate.prompt_tokens, estimate.num_requests * estimate.completion_tokens
        self.rows += [
            ("requests at most", f"{most:,}, where as much is rejected as generator.attempts allows"),
            ("tokens of prompts", f"about {asked:,} ({estimate.prompt_tokens:,} each, at 4 characters a token)"),
            ("tokens of answers", f"{said:,} at most (engine.max_tokens={engine.max_tokens} each)"),
        ]
        budget = getattr(engine, "budget", None)
        if budget is not None:
            cost = (asked * budget.prompt_price + said * budget.completion_price) / MILLION
            self.rows += [("cost", f"{cost:.4f} at most, where everything is kept" if cost else "0: engine.budget holds no prices")]
            limits = [text for text in (f"{budget.tokens:,} tokens" if budget.tokens else "", f"{budget.cost:g}" if budget.cost else "") if text]
            self.rows += [("budget", " and ".join(limits) or "none")]
        return self

    def render(self, *, stream: TextIO | None = None) -> None:
        """Show the plan."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        stream = stream or sys.stdout
        table = Table(title="Plan: task=generate", title_justify="left", show_header=False)
        for name, value in self.rows:
            table.add_row(Text(name), Text(value))
        Console(file=stream, width=None if stream.isatty() else 160, highlight=False).print(table)
