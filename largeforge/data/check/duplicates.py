"""Rows that say the same, prompts that have several answers, and how many rows nearly repeat another. Knows nothing about splits.

Exact ones are found among all rows, by hashes on disk (42 bytes a row, at most); near ones in a sample that is chosen by the text itself: a row's smallest
run of characters decides whether it is looked at, so that of two alike rows both are chosen, or neither.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.check.base import Check, Finding, Seen, pairs_said, rows_said, share_said
from largeforge.data.check.config import DuplicatesConfig
from largeforge.data.check.runs import distinct, runs_of
from largeforge.data.check.spill import Lines, Records, key_of
from largeforge.report import Section

if TYPE_CHECKING:
    import numpy as np

RUN = 16  # bytes: two or three words
SKETCH = 128  # smallest hashes of a row: its similarity to another is known to about 0.04, exactly for texts of fewer runs
BANDS = 8  # rows that share three of so many smallest hashes are compared
SHARED = 3
GROUP = 40  # a hash that more rows of the sample have is boilerplate
BATCH_CHARS = 1_000_000
ROW, TAKEN, REFUSED, PROMPT = 0, 1, 2, 3  # what a record's key is of: the row, a prompt with its chosen or rejected answer, a prompt alone


class Duplicates(Check):
    """Exact repeats, conflicting answers, near repeats."""

    config: DuplicatesConfig

    def __init__(self, config: DuplicatesConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.rows = 0
        self.records = Records([("key", "<u8"), ("answer", "<u8"), ("row", "<u4"), ("what", "<u1")])
        self.waiting: list[tuple[int, int, str]] = []
        self.waiting_chars = 0
        self.sketches: list[
            tuple[int, int, int, bytes]
        ] = []  # a heap of (minus the lot, minus the row's key, minus the row, smallest hashes): the largest lot on top
        self.exact = 0
        self.conflicting = 0
        self.contradicting = 0
        self.near = 0
        self.compared = 0

    def add(self, seen: Seen) -> None:
        self.rows += 1
        row = seen.row
        key = int(row.id[:16], 16)
        self.records.add(key, 0, seen.number, ROW)
        if row.kind == "preference":
            for what, answer in zip((TAKEN, REFUSED), seen.answers, strict=True):
                self.records.add(key_of(seen.prompt + "\0" + answer), what, seen.number, TAKEN)
        elif row.kind == "messages":
            self.records.add(key_of(seen.prompt), key_of(seen.answers[0]), seen.number, PROMPT)
        self.waiting.append((seen.number, key, seen.plain_text))
        self.waiting_chars += len(seen.plain_text)
        if self.waiting_chars >= BATCH_CHARS:
            self._sketch()

    def close(self) -> None:
        self.records.close()
        self._sketch()

    def merge(self, other: Duplicates, first: int) -> None:
        import numpy as np

        self.rows += other.rows
        self.records.merge(other.records, first)
        for lot, key, row, smallest in other.sketches:
            self._keep(-lot, first - row, -key, np.frombuffer(smallest, dtype=np.uint64))

    def spill(self, folder: Path) -> None:
        self.records.spill(folder / "duplicates")

    def findings(self, origins: Lines) -> list[Finding]:
        self.close()
        exact, conflicts, contradictions = self._exact()
        near = self._near()
        found = []
        if self.exact > self.config.exact_share * self.rows:
            message = f"{rows_said(self.exact)} of {self.rows:,} ({share_said(self.exact, self.rows)}) say what an earlier one says"
            found.append(self.found("warning", message, count=self.exact, examples=_named(exact, origins, "repeats"), mend="add exact_duplicates to steps"))
        if self.conflicting > self.config.conflict_share * self.rows:
            message = (
                f"{rows_said(self.conflicting)} of {self.rows:,} ({share_said(self.conflicting, self.rows)}) have a prompt that has another answer elsewhere"
            )
            mend = "keep one answer each (step.exact_duplicates.by=prompt), or allow several: check.duplicates.conflict_share=1"
            where = _named(conflicts, origins, "answers otherwise than")
            found.append(self.found("warning", message, count=self.conflicting, examples=where, mend=mend))
        if self.contradicting:
            message = f"{rows_said(self.contradicting)} choose an answer that another row rejects for the same prompt"
            where = _named(contradictions, origins, "contradicts")
            found.append(self.found("warning", message, count=self.contradicting, examples=where, mend="leave one row of each pair out"))
        if self.near > self.config.near_share * self.compared:
            of = "rows" if self.compared == self.rows else "rows looked at"
            share = share_said(self.near, self.compared)
            message = f"{self.near:,} of {self.compared:,} {of} ({share}) nearly repeat another (similarity {self.config.similarity:g} or more)"
            where = _named(near, origins, "is nearly")
            found.append(self.found("warning", message, count=self.near, examples=where, mend="add near_duplicates to steps"))
        return found

    def sections(self, folder: Path) -> list[Section]:
        table = [
            ("repeat an earlier row", self.exact, share_said(self.exact, self.rows)),
            ("have a prompt with another answer elsewhere", self.conflicting, share_said(self.conflicting, self.rows)),
            (f"nearly repeat another (of {self.compared:,} looked at)", self.near, share_said(self.near, self.compared)),
        ]
        return [Section("Duplicates", ("rows that", "rows", "share"), table)]

    def metrics(self) -> dict[str, float]:
        near = self.near / max(1, self.compared)
        return {"check_duplicates_exact": float(self.exact), "check_conflicting_answers": float(self.conflicting), "check_duplicates_near_share": near}

    # ---- equal ----

    def _exact(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
        """Count repeats and conflicts; return the first pairs (row, the other row) of repeats, conflicts and contradictions."""
        import numpy as np

        self.exact = self.conflicting = self.contradicting = 0
        exact: list[tuple[int, int]] = []
        conflicts: list[tuple[int, int]] = []
        contradictions: list[tuple[int, int]] = []
        for records in self.records.buckets():
            for what in (ROW, PROMPT, TAKEN):
                part = records[records["what"] == what]
                if len(part) < 2:
                    continue
                same = part["key"][1:] == part["key"][:-1]
                group = np.concatenate([[0], np.cumsum(~same)])
                head = np.flatnonzero(np.concatenate([[True], ~same]))
                rows = part["row"]
                if what == ROW:
                    self.exact += int(same.sum())
                    exact += [(int(rows[place + 1]), int(rows[head[group[place + 1]]])) for place in _few(same, rows[1:], self.examples)]
                    continue
                low, high = np.minimum.reduceat(part["answer"], head), np.maximum.reduceat(part["answer"], head)
                mixed = (low != high)[group]
                if what == PROMPT:
                    self.conflicting += int(mixed.sum())
                    other = mixed & (part["answer"] != part["answer"][head][group])
                    conflicts += [(int(rows[place]), int(rows[head[group[place]]])) for place in _few(other, rows, self.examples)]
                else:
                    taken, refused = mixed & (part["answer"] == TAKEN), np.flatnonzero(mixed & (part["answer"] == REFUSED))
                    self.contradicting += int(taken.sum())
                    for place in _few(taken, rows, self.examples):
                        contradictions.append((int(rows[place]), int(rows[refused[np.searchsorted(group[refused], group[place])]])))
        return sorted(exact)[: self.examples], sorted(conflicts)[: self.examples], sorted(contradictions)[: self.examples]

    # ---- nearly equal ----

    def _sketch(self) -> None:
        """Keep the smallest hashes of the waiting rows that the lot falls on."""
        import numpy as np

        if not self.waiting:
            return
        waiting, self.waiting, self.waiting_chars = self.waiting, [], 0
        hashes, owners = runs_of([text for _, _, text in waiting], RUN)
        if not len(hashes):
            return
        begins = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]]))
        # a smallest hash is small: its lot is drawn from all its bits, so that long rows are not chosen more often
        with np.errstate(over="ignore"):
            lots = (np.minimum.reduceat(hashes, begins) >> np.uint64(24)) * np.uint64(0xD6E8FEB86659FD93)
        chosen = np.ones(len(lots), dtype=bool)
        if len(self.sketches) >= self.config.sample:
            chosen = lots <= np.uint64(-self.sketches[0][0])
        taken = np.repeat(chosen, np.diff(np.append(begins, len(hashes))))
        # one sort of 64 bits (which text, 40 bits of the hash) instead of two
        both = distinct((owners[taken].astype(np.uint64) << np.uint64(40)) | (hashes[taken] >> np.uint64(24)))
        texts = owners[begins][chosen]
        edges = np.append(np.searchsorted(both, texts.astype(np.uint64) << np.uint64(40)), len(both))
        smallest = both & np.uint64((1 << 40) - 1)
        for place, (text, lot) in enumerate(zip(texts.tolist(), lots[chosen].tolist(), strict=True)):
            number, key, _ = waiting[text]
            begin, end = int(edges[place]), int(edges[place + 1])
            self._keep(lot, number, key, smallest[begin : min(end, begin + SKETCH)])

    def _keep(self, lot: int, row: int, key: int, smallest: np.ndarray) -> None:
        entry = (-lot, -key, -row, smallest.tobytes())
        if len(self.sketches) < self.config.sample:
            heapq.heappush(self.sketches, entry)
        else:
            heapq.heappushpop(self.sketches, entry)

    def _near(self) -> list[tuple[int, int]]:
        """Compare the rows of the sample that share a smallest hash; count those with an earlier row that is alike but not equal."""
        import numpy as np

        # in the order of what they say, so that the order of the rows changes nothing
        ordered = sorted((smallest, -key, -row) for _, key, row, smallest in self.sketches)
        sample = [(row, key, np.frombuffer(smallest, dtype=np.uint64)) for smallest, key, row in ordered]
        self.compared = len(sample)
        if not sample:
            return []
        # what one row alone has, and what very many have, tells no two rows apart
        every = np.concatenate([hashes for _, _, hashes in sample])
        order = np.argsort(every, kind="stable")
        begins = np.flatnonzero(np.concatenate([[True], every[order][1:] != every[order][:-1]]))
        sizes = np.diff(np.append(begins, len(every)))
        telling = np.empty(len(every), dtype=bool)
        telling[order] = np.repeat((sizes >= 2) & (sizes <= GROUP), sizes)
        ends = np.cumsum([len(hashes) for _, _, hashes in sample]).tolist()
        bands = [hashes[telling[end - len(hashes) : end]][:BANDS].tolist() for end, (_, _, hashes) in zip(ends, sample, strict=True)]
        groups: dict[int, list[int]] = {}
        for place, values in enumerate(bands):
            for value in values:
                groups.setdefault(value, []).append(place)
        shared: dict[tuple[int, int], int] = {}
        for places in groups.values():
            for later in range(1, len(places)):
                for earlier in range(later):
                    pair = (places[later], places[earlier])
                    shared[pair] = shared.get(pair, 0) + 1
        partner: dict[int, int] = {}
        for (later, earlier), times in sorted(shared.items()):
            (_, key, hashes), (_, other, others) = sample[later], sample[earlier]
            enough = times >= min(SHARED, len(bands[later]), len(bands[earlier]))
            if enough and later not in partner and key != other and _alike(hashes, others) >= self.config.similarity:
                partner[later] = earlier
        self.near = len(partner)
        pairs = ((sample[later][0], sample[earlier][0]) for later, earlier in partner.items())
        return sorted((max(pair), min(pair)) for pair in pairs)[: self.examples]


def _alike(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard similarity, estimated from the smallest hashes of the union."""
    import numpy as np

    union = distinct(np.concatenate([left, right]))[: max(len(left), len(right)) if max(len(left), len(right)) >= SKETCH else None]
    both = np.intersect1d(left, right, assume_unique=True)
    return float(np.isin(union, both, assume_unique=True).sum() / len(union))


def _few(mask: np.ndarray, rows: np.ndarray, count: int) -> list[int]:
    """Places where the mask holds, of the first rows."""
    import numpy as np

    places = np.flatnonzero(mask)
    return [int(place) for place in places[np.argsort(rows[places], kind="stable")][:count]]


def _named(pairs: list[tuple[int, int]], origins: Lines, between: str) -> list[str]:
    names = origins.fetch([row for pair in pairs for row in pair])
    return pairs_said([(names[left], names[right]) for left, right in pairs], between)
