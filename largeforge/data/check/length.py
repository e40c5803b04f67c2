"""How long rows are: the distribution, outliers, and rows that are longer than anybody meant. Knows nothing about tokens."""

from __future__ import annotations

import heapq
import math
from pathlib import Path

from largeforge.data.check.base import Check, Finding, Seen, rows_said
from largeforge.data.check.config import LengthConfig
from largeforge.data.check.spill import Lines
from largeforge.report import Section, draw_histogram

BINS = 32  # an octave: a length is known to 2 %
MIN_ROWS = 100  # fewer rows have no distribution
LEAST_SPREAD = 0.25  # of log length: rows that are nearly all of one length do not make their neighbours outliers
ENDS = 100  # shortest and longest rows whose place is kept


class Length(Check):
    """Counts lengths in characters on a logarithmic scale; keeps the places of the shortest and the longest rows."""

    config: LengthConfig

    def __init__(self, config: LengthConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.counts: dict[str, dict[int, int]] = {}
        self.characters = 0
        self.too_long = 0
        self.shortest: list[tuple[int, int]] = []  # heaps of (minus the length, minus the row)
        self.longest: list[tuple[int, int]] = []  # (the length, minus the row)

    def add(self, seen: Seen) -> None:
        length = sum(map(len, seen.row.texts()))
        counts = self.counts.setdefault(seen.row.split, {})
        place = _bin(length)
        counts[place] = counts.get(place, 0) + 1
        self.characters += length
        self.too_long += length > self.config.max_characters
        _push(self.shortest, (-length, -seen.number))
        _push(self.longest, (length, -seen.number))

    def merge(self, other: Length, first: int) -> None:
        for split, counts in other.counts.items():
            mine = self.counts.setdefault(split, {})
            for place, count in counts.items():
                mine[place] = mine.get(place, 0) + count
        self.characters += other.characters
        self.too_long += other.too_long
        for length, row in other.shortest:
            _push(self.shortest, (length, row - first))
        for length, row in other.longest:
            _push(self.longest, (length, row - first))

    def findings(self, origins: Lines) -> list[Finding]:
        found = []
        if self.too_long:
            rows = [-row for length, row in sorted(self.longest, key=lambda item: -item[1]) if length > self.config.max_characters]
            message = f"{rows_said(self.too_long)} of more than {self.config.max_characters:,} characters"
            where = origins.named(rows[: self.examples])
            found.append(self.found("warning", message, count=self.too_long, examples=where, mend="add length to steps, or raise check.length.max_characters"))
        low, high = self.usual()
        counts = self._all()
        short = sum(count for place, count in counts.items() if place < low)
        long = sum(count for place, count in counts.items() if place > high)
        for count, said, rows in (
            (short, f"shorter than {_said(low)}", [-row for length, row in sorted(self.shortest, reverse=True) if _bin(-length) < low]),
            (long, f"longer than {_said(high + 1)}", [-row for length, row in sorted(self.longest, reverse=True) if _bin(length) > high]),
        ):
            if count:
                message = f"{rows_said(count)} {said} characters; the median is {self.median():,.0f}"
                where = origins.named(rows[: self.examples])
                found.append(self.found("warning", message, count=count, examples=where, mend="look at these rows; the step length leaves them out"))
        return found

    def median(self) -> float:
        """Characters of the middle row, known to 2 %."""
        return _edge(_middle(self._all()) + 0.5) if self.counts else 0.0

    def usual(self) -> tuple[int, int]:
        """The first and the last bin that holds no outliers."""
        counts = self._all()
        if sum(counts.values()) < MIN_ROWS:
            return min(counts, default=0), max(counts, default=0)
        middle = _middle(counts)
        away: dict[int, int] = {}
        for place, count in counts.items():
            away[abs(place - middle)] = away.get(abs(place - middle), 0) + count
        spread = max(1.4826 * _middle(away), LEAST_SPREAD * BINS / math.log(2))
        return math.ceil(middle - self.config.z * spread), math.floor(middle + self.config.z * spread)

    def sections(self, folder: Path) -> list[Section]:
        counts = self._all()
        if not counts:
            return []
        total = sum(counts.values())
        ordered = sorted(counts)
        quantiles = [(f"{share:.0%}", round(_edge(_quantile(counts, share) + 0.5))) for share in (0.01, 0.25, 0.5, 0.75, 0.99)]
        table = [("rows", f"{total:,}"), ("characters", f"{self.characters:,}"), ("mean", round(self.characters / total)), *quantiles]
        table += [("shortest", -max(self.shortest)[0]), ("longest", max(self.longest)[0])]
        low, high = ordered[0], ordered[-1] + 1
        wide = max(1, -(-(high - low) // 60))
        edges = [_edge(place) for place in range(low, high + wide, wide)]
        series: dict[str, list[int]] = {}
        for split in ("train", "validation", "test"):
            if split in self.counts:
                bars = [0] * (len(edges) - 1)
                for place, count in self.counts[split].items():
                    bars[(place - low) // wide] += count
                series[split] = bars
        name = draw_histogram(folder / "check_length.png", edges, series, label="characters of a row", log=True).name
        return [Section("Length", ("characters of a row", ""), table, pictures=[name])]

    def metrics(self) -> dict[str, float]:
        return {"characters": float(self.characters), "characters_median": self.median()}

    def _all(self) -> dict[int, int]:
        total: dict[int, int] = {}
        for counts in self.counts.values():
            for place, count in counts.items():
                total[place] = total.get(place, 0) + count
        return total


def _bin(length: int) -> int:
    return round(math.floor(BINS * math.log2(length + 1)))


def _edge(place: float) -> float:
    return max(0.5, float(2 ** (place / BINS)) - 1)


def _said(place: int) -> str:
    return f"{_edge(place):,.0f}"


def _middle(counts: dict[int, int]) -> int:
    return _quantile(counts, 0.5)


def _quantile(counts: dict[int, int], share: float) -> int:
    left = share * sum(counts.values())
    for place in sorted(counts):
        left -= counts[place]
        if left <= 0:
            return place
    return max(counts)


def _push(heap: list[tuple[int, int]], item: tuple[int, int]) -> None:
    if len(heap) < ENDS:
        heapq.heappush(heap, item)
    elif item > heap[0]:
        heapq.heapreplace(heap, item)
