"""How good answers look (of a row of text, all of it): the distribution of the score by the rules of the step `quality`. Scores nothing itself."""

from __future__ import annotations

from pathlib import Path

from largeforge.data.check.base import Check, Finding, Seen, rows_said, share_said
from largeforge.data.check.config import QualityConfig
from largeforge.data.check.spill import Lines
from largeforge.data.step.quality import score
from largeforge.report import Section, draw_histogram

BINS = 1000  # scores lie in 0..1
BARS = 40


class Quality(Check):
    """Counts scores; keeps the places of the first poor rows."""

    config: QualityConfig

    def __init__(self, config: QualityConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.counts = [0] * (BINS + 1)
        self.poor = 0
        self.where: list[str] = []

    def add(self, seen: Seen) -> None:
        value = score(seen.answers[0])
        self.counts[round(min(1.0, max(0.0, value)) * BINS)] += 1
        if value < self.config.low:
            self.poor += 1
            if len(self.where) < self.examples:
                self.where.append(seen.row.origin)

    def merge(self, other: Quality, first: int) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.poor += other.poor
        self.where = [*self.where, *other.where][: self.examples]

    def findings(self, origins: Lines) -> list[Finding]:
        total = sum(self.counts)
        if self.poor <= self.config.max_low_share * total:
            return []
        message = f"{rows_said(self.poor)} of {total:,} ({share_said(self.poor, total)}) score below {self.config.low:g}"
        return [self.found("warning", message, count=self.poor, examples=self.where, mend="add quality to steps: it drops poor rows and says why")]

    def sections(self, folder: Path) -> list[Section]:
        total = sum(self.counts)
        if not total:
            return []
        wide = BINS // BARS
        bars = [sum(self.counts[place * wide : (place + 1) * wide]) for place in range(BARS)]
        bars[-1] += self.counts[BINS]
        edges = [place / BARS for place in range(BARS + 1)]
        picture = draw_histogram(folder / "check_quality.png", edges, {"rows": bars}, label="quality score").name
        table = [(f"{share:.0%} of the rows score below", self._quantile(share)) for share in (0.01, 0.05, 0.25, 0.5, 0.75)]
        return [Section("Quality", ("", "score"), [("mean", self.mean()), *table], pictures=[picture])]

    def metrics(self) -> dict[str, float]:
        total = sum(self.counts)
        return {"quality_mean": self.mean(), "quality_low_share": self.poor / total} if total else {}

    def mean(self) -> float:
        """Mean score, 0..1; known to 0.001."""
        return sum(place * count for place, count in enumerate(self.counts)) / BINS / max(1, sum(self.counts))

    def _quantile(self, share: float) -> float:
        left = share * sum(self.counts)
        for place, count in enumerate(self.counts):
            left -= count
            if left <= 0:
                return place / BINS
        return 1.0
