"""What a proof leaves: a table for people, a certificate for programs, and exit code 4 where it did not hold. Knows nothing about what was proven."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from largeforge import __version__
from largeforge.artifact import write_atomically
from largeforge.config.lock import PACKAGES, version_of
from largeforge.errors import EXIT_DOES_NOT_FIT, EXIT_USER, CheckFailed, DoesNotFit, InputError, LargeForgeError
from largeforge.report import Section, write_report
from largeforge.run import Run

FILE = "certificate.json"


@dataclass
class Certificate:
    """A proof in the making.

    Args:
        proves: one sentence: what holds where no row says otherwise.
        columns: of the table; the last says "yes" or "NO".
        changed: keys of the recipe that were changed for the proof, with their values.
        facts: device, precision, what else a reader needs.
        notes: sentences under the table.
    """

    proves: str
    columns: tuple[str, ...]
    changed: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def row(self, *cells: Any, holds: bool) -> None:
        """Add one row; one that does not hold is named by its first two cells."""
        self.rows.append((*cells, "yes" if holds else "NO"))
        if not holds:
            self.failures.append(" ".join(str(cell) for cell in cells[:2]))

    def conclude(self, run: Run, *, title: str) -> None:
        """Show the table, write certificate.json and report.md into the run's folder. Raises CheckFailed where a row does not hold."""
        self.changed = {key: value for key, value in self.changed.items() if value != _stands(run.composed.values, key)}
        verdict = "proven" if not self.failures else "refuted"
        values = {key: value for key, value in run.composed.values.items() if key not in ("folder", "name", "verify")}
        recipe = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
        written = {
            "certificate_version": 1,
            "verify": run.config.verify,
            "proves": self.proves,
            "verdict": verdict,
            "task": run.composed.task,
            "recipe_sha256": recipe,
            "changed": self.changed,
            "facts": self.facts,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "notes": self.notes,
            "largeforge": __version__,
            "python": platform.python_version(),
            "packages": {name: version_of(name) for name in PACKAGES},
        }
        write_atomically(run.folder / FILE, json.dumps(written, indent=2, default=str) + "\n")
        shown = [tuple(_shown(cell) for cell in row) for row in self.rows]
        run.progress.table(title, self.columns, shown)
        for note in self.notes:
            run.progress.say(note)
        if self.changed:
            run.progress.say("changed for the proof: " + " ".join(f"{key}={_word(value)}" for key, value in self.changed.items()))
        run.progress.say(f"{verdict}: {self.proves}\ncertificate: {run.folder / FILE}")
        write_report(run.folder, title=title, sections=[Section(self.proves, self.columns, shown)])
        run.measure(rows_checked=float(len(self.rows)), rows_failed=float(len(self.failures)))
        if self.failures:
            named = "; ".join(self.failures[:4]) + (f" and {len(self.failures) - 4} more" if len(self.failures) > 4 else "")
            raise CheckFailed(f"verify={run.config.verify} does not hold for this recipe: {named}.", next_step=f"look at {run.folder / FILE}")


def _shown(cell: Any) -> Any:
    return f"{cell:.9g}" if isinstance(cell, float) else cell


def _word(value: Any) -> str:
    """A value as it is typed on a command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def words_of(run: Run, changes: dict[str, Any], *, without: Sequence[str] = ()) -> list[str]:
    """The run's command line with other values: what a child process is given."""
    dropped = {*changes, *without}
    kept = [word for word in run.composed.argv if word.partition("=")[0].lstrip("+~") not in dropped]
    return [*kept, "--trial", *(f"{key}={_word(value)}" for key, value in changes.items())]


def alone(run: Run) -> None:
    """Raise InputError in one of several processes: a proof starts the ones it needs."""
    if run.rank.world_size > 1:
        raise InputError(
            f"verify={run.config.verify} in one of {run.rank.world_size} processes: a proof starts its own.",
            next_step=f"without torchrun or srun: {run.command()}",
        )


def finished(run: Run, words: Sequence[str]) -> None:
    """Run a command line of LargeForge to its end in a process of its own.

    Raises:
        InputError, DoesNotFit, Interrupted: it ended so, and says why.
        CheckFailed: it ended in any other way than well.
    """
    done = subprocess.run([sys.executable, "-m", "largeforge", *words], capture_output=True, text=True)
    if done.returncode or run.stop_asked:
        raise fault_of(run, done.returncode, f"{done.stdout[-2000:]}{done.stderr[-2000:]}".strip())


def fault_of(run: Run, code: int, said: str) -> LargeForgeError:
    """What a process that ended with an exit code other than 0 means here."""
    if run.stop_asked or code in (130, 143):
        return run.interrupt("Interrupted; nothing is proven.", next_step=run.command())
    kind = {EXIT_USER: InputError, EXIT_DOES_NOT_FIT: DoesNotFit}.get(code, CheckFailed)
    return kind(f"A run of this recipe ended with exit code {code}:\n{said}")


def _stands(values: dict[str, Any], key: str) -> Any:
    """What the recipe says at a dotted key; a choice of a group is told by its name."""
    node: Any = values
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict) and "_target_" in node:
        return {"Silent": "none", "Unmeasured": "none", "Unquantized": "none"}.get(str(node["_target_"]).rpartition(".")[2])
    return node
