"""Compare two artifacts or two runs: which rows came, went and changed; which settings, sources and versions explain another result."""

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
from largeforge.run import Run, holds_run
from largeforge.task.data_config import DiffConfig
from largeforge.task.inspect import local

OF_RUNS = "largeforge.proof.run_diff.RunComparison"
COMPARISONS = {"data": "largeforge.data.comparing.Comparison", "run": OF_RUNS, "model": OF_RUNS, "adapter": OF_RUNS}


class Diff:
    """Writes to standard output; every difference goes to diff.jsonl in the run's folder."""

    def __init__(self, config: DiffConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Compare and show."""
        config = self.config
        storage: Storage = build(config.storage, progress=run.progress)
        a, b = (local(path, storage) for path in (config.a, config.b))
        kinds = ["run" if holds_run(folder) else read_artifact(folder).kind for folder in (a, b)]
        parts = {COMPARISONS.get(kind, "") for kind in kinds}
        if len(parts) > 1 or "" in parts:
            raise InputError(
                f"a is of kind {kinds[0]}, b of kind {kinds[1]}; two of one kind are compared ({', '.join(COMPARISONS)}).",
                next_step="a=<artifact or run> b=<artifact or run>",
            )
        comparison = find(parts.pop())(a, b)
        console = Console(stream=sys.stdout)
        counts: Counter[str] = Counter()
        shown: dict[str, list[tuple[str, ...]]] = {}
        draft = run.folder / ".diff.jsonl"
        with draft.open("w", encoding="utf-8") as stream:
            for line in comparison.lines():
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                counts[line["what"]] += 1
                if counts[line["what"]] <= config.show:
                    shown.setdefault(line["what"], []).append(comparison.cells(line))
                if run.stop_asked:
                    raise run.interrupt("Stopped while comparing.")
        os.replace(draft, run.folder / "diff.jsonl")
        for what, rows in shown.items():
            console.table(f"{what} ({counts[what]:,})", comparison.columns, rows)
        console.say(", ".join(f"{counts[name]:,} {name}" for name in comparison.names) if counts else comparison.same)
        run.progress.say(f"all of them: {run.folder / 'diff.jsonl'}")
        run.measure(**{comparison.metric(name): float(counts[name]) for name in comparison.names})

    def plan(self, *, progress: Progress) -> Any:
        """There is nothing to plan: it only reads."""
        raise InputError("task=diff costs nothing that could be planned: it only reads.", next_step="leave plan=... out")
