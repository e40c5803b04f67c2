"""report.md and its curves: what a person reads of a run afterwards. Knows nothing about how the numbers came to be."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge.artifact import write_atomically

CURVES = {
    "loss": "Loss",
    "gradient_norm": "Gradient norm before clipping",
    "tokens_per_s": "Supervised tokens per second",
}
"""What is drawn first, with the words at its axis; every other measure of metrics.jsonl follows under its own name."""
BESIDE = {"loss": "learning_rate"}
"""What is drawn in a strip below a curve, over the same steps."""
NO_CURVES = ("step", "learning_rate", "memory_bytes", "supervised_tokens")
VALIDATION = "validation_"
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860")


@dataclass(frozen=True)
class Section:
    """A heading, and a table, a text or pictures (files beside report.md) below it."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    text: str = ""
    pictures: Sequence[str] = ()


def number(value: float) -> str:
    """A number as people read it: whole ones whole, with their thousands parted."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


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
        for name in section.pictures:
            lines += [f"![{section.title}]({name})", ""]
    pictures = draw_curves(folder)
    if pictures:
        lines += ["## Curves", ""] + [f"![{name}]({path.name})" for name, path in pictures.items()] + [""]
    write_atomically(folder / "report.md", "\n".join(lines))


def draw_curves(folder: Path) -> dict[str, Path]:
    """Draw each measure of metrics.jsonl that has two points or more, with its validation in the same picture; return name -> picture."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for name, value in record.items():
            found.setdefault(name, []).append((record["step"], value))
    names = dict.fromkeys([*CURVES, *sorted(name.removeprefix(VALIDATION) for name in found)])
    pictures: dict[str, Path] = {}
    for name in names:
        lines = {title: points for title, points in (("training", found.get(name, [])), ("validation", found.get(VALIDATION + name, []))) if points}
        if name not in NO_CURVES and any(len(points) >= 2 for points in lines.values()):
            below = found.get(BESIDE.get(name, ""), [])
            pictures[name] = _draw(folder / f"curve_{name}.png", lines, CURVES.get(name, _said(name)), below=(_said(BESIDE.get(name, "")), below))
    return pictures


def draw_histogram(path: Path, edges: Sequence[float], counts: Mapping[str, Sequence[int]], *, label: str, log: bool = False) -> Path:
    """Draw how often a number falls between each two edges.

    Args:
        path: the picture to write.
        edges: one more than there are counts, rising.
        counts: name of a series -> how many rows; several are drawn above one another.
        label: of the numbers.
        log: whether the numbers stand on a logarithmic scale.
    """
    figure, axes = _blank(3.2)
    below = [0] * (len(edges) - 1)
    widths = [high - low for low, high in zip(edges, edges[1:], strict=False)]
    for (name, series), colour in zip(counts.items(), COLOURS, strict=False):
        axes.bar(edges[:-1], series, widths, bottom=below, align="edge", label=name, color=colour, linewidth=0)
        below = [one + more for one, more in zip(below, series, strict=True)]
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(_one_two_five())
        axes.xaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_locator(_whole())
    axes.set_xlabel(label)
    axes.set_ylabel("rows")
    if len(counts) > 1:
        axes.legend(frameon=False)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    return _save(figure, path)


def draw_bars(path: Path, bars: Sequence[tuple[str, float, str]], *, label: str) -> Path:
    """Draw one bar a name, the first at the top.

    Args:
        path: the picture to write.
        bars: name, length, and what stands behind the bar.
        label: of the lengths.
    """
    figure, axes = _blank(0.9 + 0.28 * len(bars))
    places = list(range(len(bars)))
    axes.barh(places, [length for _, length, _ in bars], height=0.7, color=COLOURS[0])
    axes.set_yticks(places, [name if len(name) <= 40 else name[:39] + "…" for name, _, _ in bars], parse_math=False)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    top = max([length for _, length, _ in bars], default=0) or 1
    axes.set_xlim(0, top * 1.2)
    for place, (_, length, said) in enumerate(bars):
        axes.text(length + top * 0.01, place, said, va="center", fontsize=8, parse_math=False)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    return _save(figure, path)


def _whole() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _one_two_five() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1, 2, 5))


def _save(figure: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        # a name in a script that the font has no letters for: boxes stand in the picture, the name in the table
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=110)
    return path


def _blank(height: float) -> tuple[Any, Any]:
    # the object-oriented interface: no global state, no display, safe in a sweep's workers
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _draw(path: Path, lines: Mapping[str, Sequence[tuple[int, float]]], label: str, *, below: tuple[str, Sequence[tuple[int, float]]] = ("", ())) -> Path:
    """Draw lines over optimizer steps, and in a strip below them a further one."""
    name, strip = below
    figure, axes = _blank(4.2 if strip else 3.2)
    lowest = axes
    if strip:
        # the strip takes a quarter; both share their steps
        figure.clear()
        axes, lowest = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _line(lowest, strip, colour=COLOURS[2])
        lowest.set_ylabel(name)
        lowest.set_ylim(bottom=0)
    for (title, points), colour in zip(lines.items(), COLOURS, strict=False):
        _line(axes, points, colour=colour, label=title, marked=title == "validation" or len(points) < 40)
    axes.set_ylabel(label)
    if len(lines) > 1:
        axes.legend(frameon=False)
    lowest.set_xlabel("optimizer step")
    lowest.xaxis.set_major_locator(_whole())
    return _save(figure, path)


def _line(axes: Any, points: Sequence[tuple[int, float]], *, colour: str, label: str = "", marked: bool = False) -> None:
    steps, values = [step for step, _ in points], [value for _, value in points]
    axes.plot(steps, values, linewidth=1.2, color=colour, label=label, marker="o" if marked else "", markersize=3)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _said(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "<br>")
