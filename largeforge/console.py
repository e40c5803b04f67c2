"""What a person sees while work goes on: live bars on a terminal, plain lines elsewhere; tables either way.

rich is imported when something is shown, not before. Knows nothing about what the work is.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from largeforge.contract import Bar

PLAIN_INTERVAL_S = 10.0


class Console:
    """Progress for people.

    Args:
        stream: where it is written; standard error, so that answers on standard output stay clean.
        live: whether bars are drawn in place; None asks the stream whether it is a terminal.
    """

    def __init__(self, *, stream: TextIO | None = None, live: bool | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() if live is None else live
        self._display: Any = None
        self._num_open = 0

    @classmethod
    def silent(cls) -> Console:
        """One that shows nothing: what the other processes of a group have, while the first one speaks for all."""
        return cls(stream=Nowhere(), live=False)

    def say(self, text: str) -> None:
        """Write a line, above any live bar."""
        if self._display is not None:
            self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def bar(self, title: str, *, total: int | None, unit: str = "") -> Bar:
        """Start showing one piece of work."""
        if not self.live:
            return PlainBar(self, title, total=total, unit=unit)
        if self._display is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[beside]}")]
            self._display = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=RichConsole(file=self.stream))
            self._display.start()
        self._num_open += 1
        return LiveBar(self, title, total=total)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Show a table; cells wrap on a terminal and stay whole in plain text."""
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        # no width is asked of a pipe: rich would take 80 and cut what a log should hold whole
        console = RichConsole(file=self.stream, width=None if self.live else 160)
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            # answers of a model hold brackets: text, never markup
            table.add_row(*(Text(_cell(value)) for value in row))
        console.print(table)

    def _closed(self) -> None:
        self._num_open -= 1
        if self._num_open == 0 and self._display is not None:
            self._display.stop()
            self._display = None


class Nowhere(io.StringIO):
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class LiveBar:
    """A bar drawn in place."""

    def __init__(self, console: Console, title: str, *, total: int | None) -> None:
        self.console = console
        self.display = console._display
        self.task = self.display.add_task(title, total=total, beside="")
        self.open = True

    def advance(self, count: int = 1, **fields: Any) -> None:
        self.display.update(self.task, advance=count, **({"beside": beside(fields)} if fields else {}))

    def close(self) -> None:
        if self.open:
            self.open = False
            self.console._closed()


class PlainBar:
    """A line now and then: at the start, every ten seconds, at the end."""

    def __init__(self, console: Console, title: str, *, total: int | None, unit: str) -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.count = 0
        self.fields: dict[str, Any] = {}
        self.start = self.told = time.monotonic()
        self.open = True

    def advance(self, count: int = 1, **fields: Any) -> None:
        self.count += count
        self.fields = fields or self.fields
        if time.monotonic() - self.told >= PLAIN_INTERVAL_S:
            self._tell()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        seconds = self.told - self.start
        done = f"{self.count}/{self.total}" if self.total is not None else str(self.count)
        left = f" {seconds / self.count * (self.total - self.count):.0f} s left" if self.total and self.count and self.count < self.total else ""
        unit = f" {self.unit}" if self.unit else ""
        self.console.say(f"{self.title}: {done}{unit} in {seconds:.0f} s{left}  {beside(self.fields)}".rstrip())


def beside(fields: dict[str, Any]) -> str:
    """Join what stands beside a bar: `loss 1.234 · lr 1e-3`."""
    return " · ".join(f"{name.replace('_', ' ')} {_cell(value)}" for name, value in fields.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
