"""A table of measurements: ours beside a peer's, the ratio, the target, and whether it is met.

Writes text for people and JSON for machines to outputs/bench/; knows nothing about how anything is measured.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "bench"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        name: what was measured.
        ours: our median.
        peer: the peer's median, or what was measured where ours is a prediction; not 0, but where `higher` is said.
        unit: of both numbers: "s", "tokens/s", "MiB".
        at_least: smallest ratio ours / peer that meets the target; None is no lower bound.
        at_most: largest ratio that meets the target; None is no upper bound.
        higher: True where ours is to be above the peer's, False where below: of measures that may be 0 or negative, whose ratio says nothing, so that
            the difference is told. None where the ratio is judged.
    """

    name: str
    ours: float
    peer: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    higher: bool | None = None

    @property
    def ratio(self) -> float:
        """Of a row that is judged by its difference: that difference."""
        if self.higher is not None:
            return self.ours - self.peer
        return self.ours / self.peer if self.peer else 1.0 if self.ours == 0 else float("inf")

    @property
    def met(self) -> bool | None:
        """Whether the ratio is within the target; None where there is no target."""
        if self.higher is not None:
            return self.ours > self.peer if self.higher else self.ours < self.peer
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.ratio >= self.at_least) and (self.at_most is None or self.ratio <= self.at_most)

    @property
    def target(self) -> str:
        if self.higher is not None:
            return "higher" if self.higher else "lower"
        bounds = [(">=", self.at_least), ("<=", self.at_most)]
        return " ".join(f"{sign} {bound:g}x" for sign, bound in bounds if bound is not None)


@dataclass
class Table:
    """Rows of one bench.

    Args:
        name: of the bench; the files are outputs/bench/<name>.txt and .json.
        title: what is compared, and how.
        ours: heading of our column.
        peer: heading of the peer's column.
        rows: the comparisons.
        notes: sentences under the table: what both sides share, where the difference comes from, what is missed and why.
        details: whatever else the JSON shall hold, the single measurements above all.
    """

    name: str
    title: str
    ours: str
    peer: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The table as a person reads it."""
        cells = [("", self.ours, self.peer, "unit", "ratio", "target", "met")]
        words = {True: "yes", False: "NO", None: ""}
        cells += [(row.name, f"{row.ours:.4g}", f"{row.peer:.4g}", row.unit, told(row), row.target, words[row.met]) for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(7)]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (0, 3, 5, 6) else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        missed = [row.name for row in self.rows if row.met is False]
        verdict = [f"Missed: {', '.join(missed)}."] if missed else []
        return "\n".join([self.title, "", *lines, "", *verdict, *self.notes]).rstrip() + "\n"

    def publish(self, folder: Path = FOLDER) -> None:
        """Print the table, and write it as text and as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in self.rows]
        facts = {
            "name": self.name,
            "title": self.title,
            "ours": self.ours,
            "peer": self.peer,
            "rows": rows,
            "notes": self.notes,
            "details": self.details,
            "machine": machine(),
        }
        write(folder / f"{self.name}.json", json.dumps(facts, indent=2) + "\n")
        write(folder / f"{self.name}.txt", self.text())
        print(self.text(), end="")
        print(f"Written to {folder / self.name}.txt and .json")


def told(row: Row) -> str:
    """The ratio, or the difference, as the table has it."""
    return f"{row.ratio:.3f}x" if row.higher is None else f"{row.ratio:+.3g}"


def machine(libraries: Sequence[str] = ("torch", "transformers", "lightning", "hydra-core")) -> dict[str, Any]:
    """Where and when: what a number means little without."""
    names = (
        [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        if Path("/proc/cpuinfo").is_file()
        else []
    )
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {library: version(library) for library in libraries},
    }


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
