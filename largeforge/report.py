"""report.md and its curves: what a person reads of a run afterwards. Knows nothing about how the numbers came to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge.artifact import write_atomically

CURVES = {
    "loss": "Loss (mean over supervised tokens)",
    "validation_loss": "Validation loss",
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm before clipping",
    "tokens_per_s": "Supervised tokens per second",
}


@dataclass(frozen=True)
class Section:
    """A heading, and a table or a text below it."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    text: str = ""


def write_report(folder: Path, *, title: str, sections: Sequence[Section]) -> None:
    """Write `report.md` and one picture a curve that metrics.jsonl holds.

    Args:
        folder: the run's folder.
        title: the report's first line.
        sections: in the order they are read.
    """
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.text:
            lines += [section.text, ""]
        if section.columns:
            lines += ["| " + " | ".join(section.columns) + " |", "|" + " --- |" * len(section.columns)]
            lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in section.rows]
            lines += [""]
    pictures = draw_curves(folder)
    if pictures:
        lines += ["## Curves", ""] + [f"![{name}]({path.name})" for name, path in pictures.items()] + [""]
    write_atomically(folder / "report.md", "\n".join(lines))


def draw_curves(folder: Path) -> dict[str, Path]:
    """Draw each curve of metrics.jsonl that has two points or more; return name -> picture."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pictures: dict[str, Path] = {}
    for name, label in CURVES.items():
        points = [(record["step"], record[name]) for record in records if name in record]
        if len(points) >= 2:
            pictures[name] = _draw(folder / f"curve_{name}.png", points, label)
    return pictures


def _draw(path: Path, points: Sequence[tuple[int, float]], label: str) -> Path:
    # the object-oriented interface: no global state, no display, safe in a sweep's workers
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([step for step, _ in points], [value for _, value in points], linewidth=1.2, marker="." if len(points) < 40 else "")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return path


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "<br>")
