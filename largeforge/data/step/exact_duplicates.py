"""Rows that say the same, once: by hashes on disk, so that memory does not grow with the rows. Knows nothing about likeness.

Each shard's survey holds 16 bytes a row, sorted, and where each row came from; the verdict is made a range of hashes at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.rows import Dropped, Row, canonical
from largeforge.data.step.base import Parallel, Survey, WholeStep
from largeforge.data.step.config import ExactDuplicatesConfig

if TYPE_CHECKING:
    import numpy as np

RANGE_ROWS = 200_000  # rows of one range of hashes: about 16 MB while it is sorted
REASON = "duplicate_exact"


class ExactDuplicates(WholeStep):
    """The first row of each set of equal ones stays. Two rows of 10 million are taken for equal wrongly with a chance of 1e-25 (128 bits)."""

    config: ExactDuplicatesConfig

    def survey(self, rows: Iterable[Row], folder: Path) -> None:
        """Write the shard's hashes, sorted, with each row's place; and the rows' origins."""
        import numpy as np

        hashes, origins = bytearray(), []
        for row in rows:
            hashes += hashlib.blake2b(self.key(row), digest_size=16).digest()
            origins.append(row.origin.encode())
        pairs = np.frombuffer(bytes(hashes), dtype=">u8").astype(np.uint64).reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        np.save(folder / "hashes.npy", pairs[order])
        np.save(folder / "places.npy", order.astype(np.int64))
        np.save(folder / "origin_ends.npy", np.cumsum([len(origin) for origin in origins], dtype=np.int64))
        (folder / "origins.bin").write_bytes(b"".join(origins))

    def decide(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel) -> None:
        """Write, for each range of hashes, which rows repeat which: sorted by shard and place."""
        total = sum(survey.num_rows for survey in surveys)
        count = max(1, -(-total // RANGE_ROWS))
        edges = [(number << 64) // count for number in range(count)] + [1 << 64]
        parallel(_decide_range, [_Range(tuple(surveys), edges[n], edges[n + 1], folder / f"repeats-{n:05d}.npy") for n in range(count)])

    def apply(self, rows: Iterable[Row], shard: int, verdict: Path) -> Iterator[Row | Dropped]:
        """Leave out what an earlier row says."""
        repeats = dict(_repeats_of(shard, verdict))
        for place, row in enumerate(rows):
            yield Dropped(row, REASON, f"the same as {repeats[place]}") if place in repeats else row

    def key(self, row: Row) -> bytes:
        """What two equal rows have in common."""
        by = self.config.by
        if by == "row":
            key = canonical(row.content)
        elif by == "text":
            key = canonical({"texts": list(row.texts())})
        else:
            key = canonical({"prompt": prompt_of(row)})
        return key.decode().lower().encode() if self.config.ignore_case else key


def prompt_of(row: Row) -> list[str]:
    """What is asked: every turn before the last answer; a text's all."""
    if row.kind == "preference":
        return [turn["content"] for turn in row.content["prompt"]]
    if row.kind == "messages":
        turns = row.content["messages"]
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
        return [turn["content"] for turn in turns[:last]]
    return [row.content["text"]]


@dataclass(frozen=True)
class _Range:
    """The hashes from `low` up to, not including, `high` (of their first 64 bits)."""

    surveys: tuple[Survey, ...]
    low: int
    high: int
    target: Path


def _decide_range(task: _Range) -> None:
    import numpy as np

    parts: list[np.ndarray] = []
    for survey in task.surveys:
        hashes = np.load(survey.folder / "hashes.npy", mmap_mode="r")
        first = int(np.searchsorted(hashes[:, 0], np.uint64(task.low)))
        end = len(hashes) if task.high == 1 << 64 else int(np.searchsorted(hashes[:, 0], np.uint64(task.high)))
        part = np.empty((end - first, 4), dtype=np.uint64)
        part[:, :2] = hashes[first:end]
        part[:, 2] = survey.shard
        part[:, 3] = np.load(survey.folder / "places.npy", mmap_mode="r")[first:end]
        parts.append(part)
    table = np.concatenate(parts) if parts else np.empty((0, 4), dtype=np.uint64)
    table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 1], table[:, 0]))]
    same = np.zeros(len(table), dtype=bool)
    same[1:] = (table[1:, 0] == table[:-1, 0]) & (table[1:, 1] == table[:-1, 1])
    keeper = np.maximum.accumulate(np.where(same, 0, np.arange(len(table))))
    repeats = np.concatenate([table[same, 2:], table[keeper[same], 2:]], axis=1).astype(np.int64)
    repeats = repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]
    np.save(task.target, repeats)
    np.save(task.target.with_name(task.target.name.replace("repeats", "kept")), _origins(task.surveys, repeats[:, 2:]))


def _origins(surveys: Sequence[Survey], places: np.ndarray) -> np.ndarray:
    """Look up where rows came from: text, one a row of `places` (shard, place)."""
    import numpy as np

    folders = {survey.shard: survey.folder for survey in surveys}
    found: list[str] = [""] * len(places)
    for shard in np.unique(places[:, 0]).tolist():
        ends = np.load(folders[shard] / "origin_ends.npy", mmap_mode="r")
        with (folders[shard] / "origins.bin").open("rb") as stream:
            for number in np.flatnonzero(places[:, 0] == shard).tolist():
                place = int(places[number, 1])
                begin = int(ends[place - 1]) if place else 0
                stream.seek(begin)
                found[number] = stream.read(int(ends[place]) - begin).decode()
    return np.array(found, dtype=np.str_)


def _repeats_of(shard: int, verdict: Path) -> Iterator[tuple[int, str]]:
    """Yield (place, origin of the row that it repeats) for one shard."""
    import numpy as np

    for path in sorted(verdict.glob("repeats-*.npy")):
        repeats = np.load(path, mmap_mode="r")
        first, end = (int(np.searchsorted(repeats[:, 0], edge)) for edge in (shard, shard + 1))
        if first < end:
            kept = np.load(path.with_name(path.name.replace("repeats", "kept")), mmap_mode="r")
            yield from zip(repeats[first:end, 1].tolist(), kept[first:end].tolist(), strict=True)
