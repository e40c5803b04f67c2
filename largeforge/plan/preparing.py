"""What preparing rows will read and do: files, rows, steps, passes over the data, disk. Reads no row's content and writes nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from largeforge.contract import Progress
from largeforge.plan.report import size

if TYPE_CHECKING:
    from largeforge.task.data_config import PrepareConfig

WHOLE = ("exact_duplicates", "near_duplicates", "semantic_duplicates", "balance", "order")
"""Steps that must have seen every row: each ends a pass over the rows."""


@dataclass
class PreparationPlan:
    """What a plan of task=prepare says; it always fits, since memory does not grow with the rows."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    fits: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dict(self.rows)

    def render(self, *, stream: TextIO | None = None) -> None:
        """Show the plan."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        stream = stream or sys.stdout
        console = Console(file=stream, width=None if stream.isatty() else 160, highlight=False)
        table = Table(title="Plan: task=prepare", title_justify="left", show_header=False)
        for name, value in self.rows:
            table.add_row(Text(name), Text(value))
        console.print(table)


class PreparingPlan:
    """Plans task=prepare.

    Args:
        config: the whole typed config.
    """

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config

    def __call__(self, *, source: Any, progress: Progress) -> PreparationPlan:
        """Return the plan; counts rows where that is quick."""
        config = self.config
        count = source.expected_rows()
        shards = "-" if count is None else f"{max(1, -(-count // config.shard_rows)):,} of {config.shard_rows:,} raw rows"
        near = "split" in config.steps and config.step.split.keep_together == "near"
        passes = 1 + sum(name in WHOLE for name in config.steps) + near
        rows = [(f"source {number}", f"{one.name} (sha256 {one.sha256[:12]})") for number, one in enumerate(source.sources(), start=1)]
        rows += [
            ("rows", "known when they are read" if count is None else f"{count:,}"),
            ("shards", shards),
            ("steps", ", ".join(config.steps) or "none"),
            ("passes over the rows", str(passes)),
            ("layout", f"{config.layout}, {config.file_type}"),
        ]
        if hasattr(source, "size_bytes"):
            rows.append(("disk while it works", f"about {size(2 * source.size_bytes())}"))
        return PreparationPlan(rows)
