"""check=standard: every check over every row, once; findings, a section of the report with pictures, and whether the run fails.

Rows may be counted in other processes (`fresh().look(rows)`, pickled back) and added up in the order of shards (`merge`); the same rows give the same
findings however they were cut. Records of single rows go to files, so that memory does not grow with the rows. Knows no particular check.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import finalize

from largeforge.data.check.balance import Balance
from largeforge.data.check.base import SEVERITIES, Check, Finding, Seen
from largeforge.data.check.bias import Bias
from largeforge.data.check.completeness import Completeness
from largeforge.data.check.config import StandardConfig
from largeforge.data.check.duplicates import Duplicates
from largeforge.data.check.leakage import Leakage
from largeforge.data.check.length import Length
from largeforge.data.check.quality import Quality
from largeforge.data.check.schema import Schema
from largeforge.data.check.spill import Lines
from largeforge.data.rows import Row
from largeforge.errors import CheckFailed, InputError
from largeforge.report import Section

if TYPE_CHECKING:
    from largeforge.contract import Progress

CHECKS: dict[str, Callable[..., Check]] = {
    "schema": Schema,
    "completeness": Completeness,
    "duplicates": Duplicates,
    "leakage": Leakage,
    "length": Length,
    "balance": Balance,
    "bias": Bias,
    "quality": Quality,
}
TOGETHER = 20_000  # rows that `Standard.look` counts before it adds them up


class Looking:
    """The counts over one shard: filled where the rows are, sent back by pickle.

    Args:
        config: typed.
    """

    def __init__(self, config: StandardConfig) -> None:
        self.schema = Schema(examples=config.examples)
        chosen = [name for name in CHECKS if name in (config.only or CHECKS) and name not in config.skip]
        self.tells_schema = "schema" in chosen
        self.checks = [CHECKS[name](getattr(config, name), examples=config.examples) for name in chosen if name != "schema"]
        self.origins = Lines()
        self.rows = 0

    def look(self, rows: Iterable[Row]) -> Looking:
        """Count rows. A row of the wrong shape is counted by the schema check alone: no other could read it."""
        for row in rows:
            self.origins.add(row.origin)
            if self.schema.sound(row):
                seen = Seen(row, self.rows)
                for check in self.checks:
                    check.add(seen)
            self.rows += 1
        self.origins.close()
        for check in self.checks:
            check.close()
        return self

    def told(self) -> list[Check]:
        """The checks that were chosen, in their order."""
        return [self.schema, *self.checks] if self.tells_schema else list(self.checks)


class Standard:
    """All checks of prepared rows.

    Args:
        config: typed.
        seed: of nothing here: which rows are compared follows from the rows alone.
        progress: where the end of the work is told.
        folder: where records are kept until `close`, below `records`; None is a temporary folder.
    """

    def __init__(self, config: StandardConfig, *, seed: int = 0, progress: Progress | None = None, folder: Path | None = None) -> None:
        self.config = config
        self.progress = progress
        clash = sorted(set(config.only) & set(config.skip))
        if clash or not Looking(config).told():  # also reads the groups, so that a bad file is told before any work
            said = f"check.only and check.skip both name {', '.join(clash)}." if clash else "check.only and check.skip leave no check."
            raise InputError(said, next_step="take it off one of them; check=none checks nothing")
        self._given = folder
        self._remove: Callable[[], object] | None = None  # takes the records away, here or when nobody needs this any more
        self._sum: Looking | None = None
        self._findings: list[Finding] | None = None

    def fresh(self) -> Looking:
        """What a worker fills with one shard and sends back; itself small and picklable."""
        return Looking(self.config)

    def look(self, rows: Iterable[Row]) -> Standard:
        """Count rows here, so many at a time."""
        rows = iter(rows)
        while part := list(islice(rows, TOGETHER)):
            self.merge(self.fresh().look(part))
        return self

    def merge(self, other: Looking) -> None:
        """Add the counts of the rows that follow: call it in the order of shards."""
        total = self._total()
        for mine, theirs in zip([total.schema, *total.checks], [other.schema, *other.checks], strict=True):
            mine.merge(theirs, total.rows)
        total.origins.merge(other.origins)
        total.rows += other.rows
        self._findings = None

    def findings(self) -> list[Finding]:
        """Tell what was found: errors first, then in the order of checks."""
        if self._findings is None:
            total = self._total()
            found = [finding for check in total.told() for finding in check.findings(total.origins)]
            self._findings = sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
        return self._findings

    def sections(self, folder: Path) -> list[Section]:
        """What the report says of each check: tables and pictures, which are written into `folder`. The findings themselves are the story's to tell."""
        return [section for check in self._total().told() for section in check.sections(folder)]

    def metrics(self) -> dict[str, float]:
        """Flat numbers for result.json."""
        numbers = {f"findings_{severity}": float(sum(finding.severity == severity for finding in self.findings())) for severity in SEVERITIES}
        for check in self._total().told():
            numbers.update(check.metrics())
        return numbers

    def verdict(self, findings: Sequence[Finding] | None = None, *, report: Path | None = None) -> CheckFailed | None:
        """Return the error to raise when all is written, where a finding is as bad as `check.fail_on` says; None where none is."""
        if self.config.fail_on == "never":
            return None
        fatal = SEVERITIES[: SEVERITIES.index(self.config.fail_on) + 1]
        failed = [finding for finding in (self.findings() if findings is None else findings) if finding.severity in fatal]
        if not failed:
            return None
        lines = [f"The rows do not pass their checks: {len(failed)} finding{'' if len(failed) == 1 else 's'} (check.fail_on={self.config.fail_on})"]
        lines += [f"  {finding.severity}  {finding.check}: {finding.message}" for finding in failed]
        mends = list(dict.fromkeys(finding.mend for finding in failed if finding.mend))[:1]
        steps = [f"look at {report}"] if report else []
        return CheckFailed("\n".join(lines), next_step="; or ".join([*steps, *mends, "check.fail_on=never keeps the rows as they are"]))

    def close(self) -> None:
        """Take records away; findings, sections and metrics must have been asked for before."""
        if self._remove is not None:
            self._remove()

    def _total(self) -> Looking:
        if self._sum is None:
            if self._given is None:
                folder = Path(tempfile.mkdtemp(prefix="largeforge-check-"))
            else:
                folder = self._given / "records"
                shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left
                folder.mkdir(parents=True)
            self._remove = finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._sum = self.fresh()
            self._sum.origins.spill(folder / "origins.bin")
            for check in self._sum.checks:
                check.spill(folder)
        return self._sum
