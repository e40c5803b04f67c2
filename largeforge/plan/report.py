"""A plan as people and programs read it. Knows nothing about how its numbers came to be."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from largeforge.batch import TokenizedRow
from largeforge.plan.devices import Device

GIB = 1 << 30
SHOWN_TOKENS = 400


@dataclass(frozen=True)
class ShownRow:
    """A row token by token: the text of each token and whether it is learnt from."""

    origin: str
    tokens: list[str]
    trained: list[bool]


@dataclass
class Plan:
    """What a run would cost.

    Args:
        task: "sft", "chat" ...
        model: by name.
        device: where it would run.
        parameters: of the model as it would run, adapters included.
        trainable: those of them that learn.
        memory: bytes at the peak by component; their sum is the peak.
        facts: name -> number or text, in the order they are shown: steps, tokens, disk ...
        notes: sentences for the user.
        shown: rows, token by token.
        facts_bytes: what the memory was computed from: "kept" (weights, gradients, optimizer) and "passing" (what comes and goes in a
            step, holes between it included, before the calibration) and "kernels" (a number).
        num_devices: that train together; memory is of each.
        per_machine: those of one machine; on a CPU they share its memory.
        shared: how they share the work, in words.
        suggestions: what else was planned where the run does not fit: the changes, the peak in bytes, whether it fits.
    """

    task: str
    model: str
    device: Device
    parameters: int
    trainable: int
    memory: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shown: list[ShownRow] = field(default_factory=list)
    facts_bytes: dict[str, int] = field(default_factory=dict)
    num_devices: int = 1
    per_machine: int = 1
    shared: str = ""
    suggestions: list[tuple[str, int, bool]] = field(default_factory=list)

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def needed_bytes(self) -> int:
        """What the device must have: of a CPU, enough for every process of the machine."""
        return self.peak_bytes * (self.per_machine if self.device.kind == "cpu" else 1)

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.device.memory_bytes

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of every line of the plan's table."""
        rows = [
            ("model", self.model),
            ("parameters", f"{self.parameters:,}"),
            ("trainable", f"{self.trainable:,} ({self.trainable / max(1, self.parameters):.2%})"),
        ]
        rows += [(f"memory: {name}", size(value)) for name, value in self.memory.items()]
        if self.num_devices > 1:
            rows += [("memory: peak of each", size(self.peak_bytes)), ("memory: all devices", size(self.peak_bytes * self.num_devices))]
        else:
            rows += [("memory: peak", size(self.peak_bytes))]
        rows += [(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)) for name, value in self.facts.items()]
        if self.num_devices > 1:
            machines = f" in {self.num_devices // self.per_machine} machines" if self.num_devices > self.per_machine else ""
            rows += [("devices", f"{self.num_devices}{machines}: {self.shared}")]
        share = self.needed_bytes / self.device.memory_bytes
        rows += [("device", f"{self.device.title}, {size(self.device.memory_bytes)}, {'found here' if self.device.found else 'named'}")]
        rows += [("fits", f"{'yes' if self.fits else 'no'} ({share:.0%} of its memory)")]
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "peak_bytes": self.peak_bytes, "fits": self.fits}

    def render(self, *, stream: TextIO | None = None) -> None:
        """Show the plan; trained tokens stand in [brackets], and in bold green on a terminal."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        stream = stream or sys.stdout
        console = Console(file=stream, width=None if stream.isatty() else 160, highlight=False)
        table = Table(title=f"Plan: task={self.task} on {self.device.name}", title_justify="left", show_header=False)
        for name, value in self.rows():
            table.add_row(Text(name), Text(value))
        console.print(table)
        if self.suggestions:
            console.print(Text("What would change it, each planned like the run itself:"))
            for change, peak, fits in self.suggestions:
                console.print(Text(f"  {size(peak):>12}  {'fits        ' if fits else 'does not fit'}  {change}"))
        for note in self.notes:
            console.print(Text(f"- {note}"))
        for row in self.shown:
            console.print(Text(f"\n{row.origin}: {sum(row.trained)} of {len(row.tokens)} tokens are trained, those in [brackets]", style="bold"))
            console.print(_marked(row, Text()))


def _marked(row: ShownRow, text: Any) -> Any:
    for token, trained in list(zip(row.tokens, row.trained, strict=True))[:SHOWN_TOKENS]:
        text.append(f"[{token}]" if trained else f" {token} ", style="bold green" if trained else "dim")
    if len(row.tokens) > SHOWN_TOKENS:
        text.append(f" ... {len(row.tokens) - SHOWN_TOKENS} more tokens")
    return text


def show_rows(rows: Sequence[TokenizedRow], tokenizer: Any) -> list[ShownRow]:
    """Decode rows token by token; line ends are written as \\n so that a row stays readable."""
    shown = []
    for row in rows:
        tokens = [tokenizer.decode([token]).replace("\n", "\\n") for token in row.token_ids]
        shown.append(ShownRow(row.origin, tokens, list(row.supervised)))
    return shown


def size(num_bytes: int) -> str:
    """Bytes for people: MiB below one GiB."""
    return f"{num_bytes / GIB:,.2f} GiB" if abs(num_bytes) >= GIB else f"{num_bytes / (1 << 20):,.1f} MiB"
