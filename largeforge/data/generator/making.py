"""From what a generator yields to an artifact in the making: rows written, what was rejected listed and counted, a bar that shows both.

Knows no engine and no budget; a generator says itself why it ended early.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import IO, Any

from largeforge.data import audit
from largeforge.data.generator.base import Generator, Rejected
from largeforge.data.rows import canonical
from largeforge.data.shards import DROPPED, KIND, DataWriter, row_file
from largeforge.errors import InputError
from largeforge.run import Run

REJECTED = "rejected.jsonl"
SO_FAR = "rows_so_far.jsonl"


class Making:
    """One run of a generator.

    Args:
        generator: ready to make rows.
        run: where progress is shown, what was rejected is listed, and a stop is asked for.
    """

    def __init__(self, generator: Generator, run: Run) -> None:
        self.generator = generator
        self.run = run
        self.rejected: Counter[str] = Counter()
        self.kept = 0

    def fill(self, draft: Path) -> str:
        """Make every row into an artifact's draft; return its kind.

        Raises:
            Interrupted: a stop was asked for; the rows so far stand in the run's folder.
            InputError: not one row was kept.
        """
        listed = self.run.folder / REJECTED
        writer = DataWriter(draft)
        bar = self.run.progress.bar(self.generator.name, total=self.generator.config.num_rows, unit="rows")
        try:
            with listed.open("wb") as stream:
                for item in self.generator.rows():
                    if isinstance(item, Rejected):
                        self._reject(item, stream)
                    else:
                        writer.add(item)
                        self.kept += 1
                    bar.advance(int(not isinstance(item, Rejected)), kept=self.kept, rejected=self.rejected.total())
                    if self.run.stop_asked:
                        break
        finally:
            bar.close()
            if self.kept:
                writer.close(sources=self.generator.sources())
        if self.run.stop_asked:
            raise self._interrupted(draft)
        if not self.kept:
            why = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.most_common()) or "nothing was asked"
            ended = f" {self.generator.ended}." if self.generator.ended else ""
            raise InputError(f"Not one row was kept ({why}).{ended}", next_step=f"look into {listed}, and loosen what left them out")
        place = draft / DROPPED
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(listed, place)
        audit.append(draft, "generated", **self.told())
        return KIND

    def told(self) -> dict[str, Any]:
        """What the audit log holds."""
        generator = self.generator
        facts = {"generator": generator.name, "rows_kept": self.kept, "rejected": dict(sorted(self.rejected.items())), "seed": generator.seed}
        return {**facts, "sources": [[one.kind, one.name, one.sha256] for one in generator.sources()], "ended": generator.ended}

    def numbers(self) -> dict[str, float]:
        """What result.json holds."""
        found = {"rows_in": self.kept + self.rejected.total(), "rows_kept": self.kept, "rows_rejected": self.rejected.total()}
        found |= {f"rejected_{reason}": count for reason, count in sorted(self.rejected.items())}
        return {name: float(value) for name, value in {**found, **dict(sorted(self.generator.tally.items()))}.items()}

    def _reject(self, item: Rejected, stream: IO[bytes]) -> None:
        self.rejected[item.reason] += 1
        stream.write(canonical({"origin": item.origin, "step": self.generator.name, "reason": item.reason, "detail": item.detail}) + b"\n")

    def _interrupted(self, draft: Path) -> Exception:
        where = ""
        if self.kept:
            shutil.copyfile(row_file(draft, "train", 0), self.run.folder / SO_FAR)
            where = f"; they stand in {self.run.folder / SO_FAR}"
        going_on = self.run.command(folder=str(self.run.folder), resume="auto")
        paid = " (answers are in the journal: none is asked for twice)" if self.generator.needs_teacher else ""
        return self.run.interrupt(f"Stopped with {self.kept:,} of {self.generator.config.num_rows:,} rows{where}.", next_step=f"{going_on}{paid}")
