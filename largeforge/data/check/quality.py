"""How good answers look (of a row of text, all of it): the distribution of the score by the rules of the step `quality`. Scores nothing itself.

A sample is scored, chosen by the rows' own ids, so that it is the same on every machine and however the rows were cut.
"""

from __future__ import annotations

import heapq
from pathlib import Path

from largeforge.data.check.base import Check, Finding, Seen, share_said
from largeforge.data.check.config import QualityConfig
from largeforge.data.check.spill import Lines
from largeforge.data.step.quality import score
from largeforge.report import Section, draw_histogram

BARS = 40
PARTS = 1000  # scores are told to a thousandth


class Quality(Check):
    """Scores the rows whose ids are smallest."""

    config: QualityConfig

    def __init__(self, config: QualityConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.rows = 0
        self.chosen: list[tuple[int, int, int | str]] = []  # a heap of (minus the lot, minus the row, its score in thousandths or the text to score)

    def add(self, seen: Seen) -> None:
        self.rows += 1
        self._keep(-int(seen.row.id[16:32], 16), -seen.number, seen.answers[0])

    def close(self) -> None:
        """Score what is still chosen: most rows were chosen for a while only."""
        scored = ((lot, row, _parts(said) if isinstance(said, str) else said) for lot, row, said in self.chosen)
        self.chosen = sorted(scored)  # a sorted list is a heap

    def merge(self, other: Quality, first: int) -> None:
        self.rows += other.rows
        for lot, row, said in other.chosen:
            self._keep(lot, row - first, said)

    def findings(self, origins: Lines) -> list[Finding]:
        self.close()
        poor = self._poor()
        total = len(self.chosen)
        if len(poor) <= self.config.max_low_share * total:
            return []
        of = "rows" if total == self.rows else "rows looked at"
        message = f"{len(poor):,} of {total:,} {of} ({share_said(len(poor), total)}) score below {self.config.low:g}"
        where = origins.named(poor[: self.examples])
        return [self.found("warning", message, count=len(poor), examples=where, mend="add quality to steps: it drops poor rows and says why")]

    def sections(self, folder: Path) -> list[Section]:
        scores = self._scores()
        if not scores:
            return []
        bars = [0] * BARS
        for value in scores:
            bars[min(BARS - 1, value * BARS // PARTS)] += 1
        picture = draw_histogram(folder / "check_quality.png", [place / BARS for place in range(BARS + 1)], {"rows": bars}, label="quality score").name
        table = [(f"{share:.0%} of the rows score at most", scores[int(share * (len(scores) - 1))] / PARTS) for share in (0.01, 0.05, 0.25, 0.5, 0.75)]
        text = f"{len(scores):,} of {self.rows:,} rows were scored."
        return [Section("Quality", ("", "score"), [("mean", self.mean()), *table], text=text, pictures=[picture])]

    def metrics(self) -> dict[str, float]:
        return {"quality_mean": self.mean(), "quality_low_share": len(self._poor()) / len(self.chosen)} if self.chosen else {}

    def mean(self) -> float:
        """Mean score of the sample, 0..1."""
        return sum(self._scores()) / PARTS / max(1, len(self.chosen))

    def _scores(self) -> list[int]:
        return sorted(said for _, _, said in self.chosen if isinstance(said, int))

    def _poor(self) -> list[int]:
        return sorted(-row for _, row, said in self.chosen if isinstance(said, int) and said < self.config.low * PARTS)

    def _keep(self, lot: int, row: int, said: int | str) -> None:
        if len(self.chosen) < self.config.sample:
            heapq.heappush(self.chosen, (lot, row, said))
        elif (lot, row) > self.chosen[0][:2]:
            heapq.heapreplace(self.chosen, (lot, row, said))


def _parts(text: str) -> int:
    return round(min(1.0, max(0.0, score(text))) * PARTS)
