"""Compare two artifacts: which rows came, went and changed."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

from largeforge.artifact import read_artifact
from largeforge.build import build, find
from largeforge.console import Console
from largeforge.contract import Progress, Storage
from largeforge.errors import InputError
from largeforge.run import Run
from largeforge.task.data_config import DiffConfig
from largeforge.task.inspect import local

COMPARISONS = {"data": "largeforge.data.comparing.Comparison"}
SHOWN = 160


class Diff:
    """Writes to standard output; every difference goes to diff.jsonl in the run's folder."""

    def __init__(self, config: DiffConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Compare and show."""
        config = self.config
        storage: Storage = build(config.storage, progress=run.progress)
        a, b = (local(path, storage) for path in (config.a, config.b))
        kinds = [read_artifact(folder).kind for folder in (a, b)]
        if kinds[0] != kinds[1] or kinds[0] not in COMPARISONS:
            raise InputError(
                f"a is an artifact of kind {kinds[0]}, b of kind {kinds[1]}; two of one kind are compared ({', '.join(COMPARISONS)}).",
                next_step="a=<artifact> b=<artifact>",
            )
        console = Console(stream=sys.stdout)
        counts: Counter[str] = Counter()
        shown: dict[str, list[tuple[str, str, str]]] = {}
        draft = run.folder / ".diff.jsonl"
        with draft.open("w", encoding="utf-8") as stream:
            for line in find(COMPARISONS[kinds[0]])(a, b).lines():
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts[line["what"]] += 1
                if counts[line["what"]] <= config.show:
                    shown.setdefault(line["what"], []).append((line["id"][:12], line["origin"], _said(line)))
                if run.stop_asked:
                    raise run.interrupt("Stopped while comparing.")
        os.replace(draft, run.folder / "diff.jsonl")
        for what, rows in shown.items():
            console.table(f"{what} ({counts[what]:,})", ("id", "origin", "row"), rows)
        names = ("came", "went", "changed", "moved")
        console.say(", ".join(f"{counts[name]:,} {name}" for name in names) if counts else "No row differs.")
        run.progress.say(f"all of them: {run.folder / 'diff.jsonl'}")
        run.measure(**{f"rows_{name}": float(counts[name]) for name in names})

    def plan(self, *, progress: Progress) -> Any:
        """There is nothing to plan: it only reads."""
        raise InputError("task=diff costs nothing that could be planned: it only reads.", next_step="leave plan=... out")


def _said(line: dict[str, Any]) -> str:
    after = _short(json.dumps(line["row"], ensure_ascii=False))
    return f"{_short(json.dumps(line['before']['row'], ensure_ascii=False))}\n-> {after}" if "before" in line else after


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
