"""Rows of validation and test that training knows: the same prompt, the same text, or a prompt that stands inside a longer training row.

Texts are compared without case, white space and the punctuation of sentences. Equal ones are found by hashes on disk (28 bytes a row); contained ones by
winnowed runs of characters (about 60 bytes for a row of 200 characters) and then for certain, in compressed copies of the texts that the runs point to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.check.base import Check, Finding, Seen, pairs_said, rows_said
from largeforge.data.check.config import LeakageConfig
from largeforge.data.check.runs import distinct, runs_of, winnowed
from largeforge.data.check.spill import Lines, Records, key_of
from largeforge.report import Section

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")
PROMPT, TEXT = 0, 1
RUN, WINDOW = 32, 64  # bytes: what is shared is met for certain from 95 bytes on
CONTAINED = RUN + WINDOW - 1
CANDIDATES = 4  # training rows that a run points to; more is boilerplate
MAX_PAIRS = 200_000  # pairs that are compared for certain; with more, what is found is told as the least
BATCH_CHARS = 1_000_000
MEND = "split by prompt after near_duplicates: steps=[normalise,exact_duplicates,near_duplicates,split] step.split.keep_together=prompt"


class Leakage(Check):
    """Equal prompts and texts in two splits; prompts of held-out rows inside training rows."""

    config: LeakageConfig

    def __init__(self, config: LeakageConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.records = Records([("key", "<u8"), ("row", "<u4"), ("split", "<u1"), ("what", "<u1")])
        self.runs = Records([("key", "<u8"), ("row", "<u4"), ("split", "<u1")])
        self.texts = Lines()
        self.waiting: list[tuple[int, int, str]] = []
        self.waiting_chars = 0
        self.counts = [0] * len(SPLITS)
        self.capped = False
        self.leaks: dict[str, int] = {"prompt": 0, "text": 0, "contained": 0}

    def add(self, seen: Seen) -> None:
        split = SPLITS.index(seen.row.split)
        self.counts[split] += 1
        prompt, text = seen.plain_prompt, seen.plain_text
        if len(prompt) >= max(1, self.config.min_characters):
            self.records.add(key_of(prompt), seen.number, split, PROMPT)
        if len(text) >= max(1, self.config.min_characters):
            self.records.add(key_of(text), seen.number, split, TEXT)
        if not self.config.contained:
            return
        # what is looked for: a held-out row's prompt, where it is long enough to be told by its runs, else all of it
        sought = text if split == 0 or len(prompt.encode("utf-8", "surrogatepass")) < CONTAINED else prompt
        if len(sought) * 4 < CONTAINED:
            return
        self.texts.pad(seen.number)
        self.texts.add(sought)
        self.waiting.append((seen.number, split, sought))
        self.waiting_chars += len(sought)
        if self.waiting_chars >= BATCH_CHARS:
            self._wind()

    def close(self) -> None:
        self.records.close()
        self._wind()
        self.texts.close()

    def merge(self, other: Leakage, first: int) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.records.merge(other.records, first)
        self.runs.merge(other.runs, first)
        self.texts.pad(first)
        self.texts.merge(other.texts)

    def spill(self, folder: Path) -> None:
        self.records.spill(folder / "leakage")
        self.runs.spill(folder / "leakage_runs")
        self.texts.spill(folder / "leakage_texts.bin")

    def findings(self, origins: Lines) -> list[Finding]:
        self.close()
        self.leaks = dict.fromkeys(self.leaks, 0)
        if sum(1 for count in self.counts if count) < 2:
            return []
        found = []
        leaks = self._equal()
        leaks["contained"] = self._contained() if self.config.contained else {}
        told: set[int] = set()
        for what, said in (
            ("prompt", "have a prompt that also stands in another split"),
            ("text", "say what a row of another split says"),
            ("contained", "have a prompt that stands inside a longer training row"),
        ):
            pairs = sorted((row, source) for row, source in leaks[what].items() if row not in told)
            told |= set(leaks[what])
            self.leaks[what] = len(pairs)
            if pairs:
                names = origins.fetch([row for pair in pairs[: self.examples] for row in pair])
                where = pairs_said([(names[left], names[right]) for left, right in pairs[: self.examples]], "is known from")
                count = f"{rows_said(len(pairs))} of validation or test {said}"
                found.append(
                    self.found("error", f"at least {count}" if what == "contained" and self.capped else count, count=len(pairs), examples=where, mend=MEND)
                )
        return found

    def sections(self, folder: Path) -> list[Section]:
        table = [
            ("have the prompt of another split", self.leaks["prompt"]),
            ("say what another split says", self.leaks["text"]),
            ("stand inside a longer training row", self.leaks["contained"] if self.config.contained else "not looked for"),
        ]
        splits = ", ".join(f"{name} {count:,}" for name, count in zip(SPLITS, self.counts, strict=True))
        return [Section("Leakage between splits", ("rows of validation and test that", "rows"), table, text=f"Rows: {splits}.")]

    def metrics(self) -> dict[str, float]:
        return {"check_leaked": float(sum(self.leaks.values()))}

    # ---- equal ----

    def _equal(self) -> dict[str, dict[int, int]]:
        """Find held-out rows that an earlier split knows (train before validation before test), by prompt and by text: row -> the row that it is known from."""
        import numpy as np

        leaks: dict[str, dict[int, int]] = {"prompt": {}, "text": {}}
        for records in self.records.buckets():
            for what, name in ((PROMPT, "prompt"), (TEXT, "text")):
                part = records[records["what"] == what]
                if len(part) < 2:
                    continue
                part, head = _grouped(part)
                places = np.flatnonzero(part["split"] > part["split"][head])
                leaks[name].update(zip(part["row"][places].tolist(), part["row"][head[places]].tolist(), strict=True))
        return leaks

    # ---- contained ----

    def _wind(self) -> None:
        """Hash the runs of the texts that wait."""
        import numpy as np

        if not self.waiting:
            return
        waiting, self.waiting, self.waiting_chars = self.waiting, [], 0
        hashes, owners = winnowed(*runs_of([text for _, _, text in waiting], RUN), WINDOW)
        records = np.zeros(len(hashes), dtype=self.runs.dtype)
        records["key"] = hashes
        records["row"] = np.array([number for number, _, _ in waiting], dtype=np.uint32)[owners]
        records["split"] = np.array([split for _, split, _ in waiting], dtype=np.uint8)[owners]
        self.runs.extend(records)

    def _contained(self) -> dict[int, int]:
        """Find held-out texts that stand inside a longer training text: row -> the training row."""
        import numpy as np

        pairs: list[np.ndarray] = []
        num_pairs = 0
        for records in self.runs.buckets():
            records, head = _grouped(records)
            sought = np.flatnonzero((records["split"] > 0) & (records["split"][head] == 0))
            for ahead in range(CANDIDATES):
                there = np.minimum(head[sought] + ahead, sought)
                near = (there < sought) & (records["key"][there] == records["key"][sought]) & (records["split"][there] == 0)
                pairs.append(distinct((records["row"][sought][near].astype(np.uint64) << np.uint64(32)) | records["row"][there[near]]))
                num_pairs += len(pairs[-1])
            if num_pairs > MAX_PAIRS:
                break
        if not num_pairs:
            return {}
        self.capped = num_pairs > MAX_PAIRS
        together = distinct(np.concatenate(pairs))[:MAX_PAIRS]
        held, train = (together >> np.uint64(32)).astype(np.int64), (together & np.uint64(0xFFFFFFFF)).astype(np.int64)
        found: dict[int, int] = {}
        # a block of training texts is unpacked once; the held-out texts are fetched for a slice of the pairs, so that memory is bounded
        order = np.argsort(train, kind="stable")
        for begin in range(0, len(order), 50_000):
            part = order[begin : begin + 50_000]
            needles = self.texts.fetch(held[part].tolist())
            stacks = self.texts.fetch(train[part].tolist())
            for place in part.tolist():
                needle, stack = needles[int(held[place])], stacks[int(train[place])]
                if len(needle.encode("utf-8", "surrogatepass")) >= CONTAINED and len(needle) < len(stack) and needle in stack:
                    found.setdefault(int(held[place]), int(train[place]))
        return found


def _grouped(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort records by key, split, row; with the place of the first record of each one's key."""
    import numpy as np

    records = records[np.lexsort((records["row"], records["split"], records["key"]))]
    fresh = np.concatenate([[True], records["key"][1:] != records["key"][:-1]])
    return records, np.flatnonzero(fresh)[np.cumsum(fresh) - 1]
