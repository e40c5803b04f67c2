"""Near rows of many shards: surveys on disk, candidates by band, and two verdicts on them: who repeats an earlier row, and who hangs together.

Knows nothing about rows' kinds; `minhash.py` says when two texts are near. Both verdicts depend on the texts and their order alone, not on how they lie
in shards nor on who works on them. Memory: while bands are sorted, about 50 bytes for each of `PART_TEXTS` texts in each process; then 8 bytes a text
(`groups`, and the order by length), and pages of files that the system may take back.

    survey:  bands.npy (bands, texts) uint64 keys · evidence.bin/.npy each text's shingles, or its signature where they are not compared
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.data.step.base import Parallel, Survey
from largeforge.data.step.minhash import EMPTY, Nearness, band_keys, shingles, signatures, similarity
from largeforge.data.step.ragged import Ragged, RaggedWriter

if TYPE_CHECKING:
    import numpy as np

BATCH_TEXTS = 1000
BATCH_CHARACTERS = 1_000_000
PART_TEXTS = 2_000_000  # whose keys of one band are sorted at once
PLACES_AT_ONCE = 1 << 16
MAPS_OPEN = 128  # shards whose evidence is mapped at a time
MAX_COMPARED = 64
"""Candidates that a text is compared with, those first that share the most bands: a bound for data whose every row is half like every other.
A near pair is lost by it only where 64 other rows share as many bands."""
MAX_MET = 8192
"""Entries of buckets that are looked through for a text, those of small buckets first, of a large one the latest: where a long beginning is common
to all rows, the buckets that it fills say nothing about who is near."""


@dataclass(frozen=True)
class Repeat:
    """A text that is near to an earlier one that stays; rows are counted over all shards."""

    row: int
    kept: int
    similarity: float


def survey(texts: Iterable[str], folder: Path, near: Nearness) -> None:
    """Write what the verdicts need of one shard's texts."""
    import numpy as np

    keys: list[np.ndarray] = [np.zeros((near.num_bands, 0), dtype=np.uint64)]
    with RaggedWriter(folder, "evidence") as evidence:
        for batch in batches(texts):
            hashes, offsets = shingles(batch, near.n)
            signed = signatures(hashes, offsets, near)
            keys.append(band_keys(signed, offsets, near))
            evidence.add(hashes if near.verify else signed, np.diff(offsets) if near.verify else np.full(len(batch), near.num_perm))
    np.save(folder / "bands.npy", np.concatenate(keys, axis=1))


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts so that no group is large, however long its texts are."""
    held: list[str] = []
    characters = 0
    for text in texts:
        held.append(text)
        characters += len(text)
        if len(held) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held


def repeats(surveys: Sequence[Survey], folder: Path, parallel: Parallel, near: Nearness, *, order: np.ndarray | None = None) -> Iterator[Repeat]:
    """Find every text that is near to one before it that stays.

    A text stays unless it is near to an earlier one that stays: of a chain a ~ b ~ c whose ends are not near, b goes and a and c stay. So every text that
    goes is near to one that stays, and no two that stay are near (but for what the bands miss: `Nearness.rows_of_band`).

    Args:
        surveys: of every shard, in order.
        folder: for files in between; they are taken away at the end.
        parallel: see base.py.
        near: as in `survey`.
        order: int64, every row once: which comes first; None is as they lie.

    Yields:
        In that order.
    """
    evidence = Evidence(surveys, near)
    row_at: Callable[[int], int] = int if order is None else lambda place: int(order[place])
    with_candidates = Candidates(surveys, folder / "near", parallel, near, order)
    for place, buckets in with_candidates:
        for other in with_candidates.before(buckets)[:MAX_COMPARED].tolist():
            likeness = similarity(evidence[row_at(place)], evidence[row_at(other)], near)
            if likeness >= near.threshold:
                yield Repeat(row_at(place), row_at(other), likeness)
                break
        else:
            with_candidates.keep(place, buckets)
    with_candidates.close()


def groups(surveys: Sequence[Survey], folder: Path, parallel: Parallel, near: Nearness) -> list[np.ndarray]:
    """Group texts that hang together: near to each other, or linked by a chain of near ones.

    Args:
        surveys: of every shard, in order, written by `survey`.
        folder: for files in between; they are taken away at the end.
        parallel: see base.py.
        near: as in `survey`.

    Returns:
        For each shard int64, one a row: the first row (counted over all shards) of the group that the row belongs to; its own number where it is alone.
    """
    import numpy as np

    evidence = Evidence(surveys, near)
    parent = np.arange(evidence.num_rows)
    with_candidates = Candidates(surveys, folder / "near", parallel, near, None)
    for place, buckets in with_candidates:
        others = with_candidates.before(buckets)
        compared = 0
        the_same = False
        while len(others) and compared < MAX_COMPARED and not the_same:
            others = others[roots(parent, others) != root(parent, place)]
            for other in others[:8].tolist():
                likeness = similarity(evidence[place], evidence[other], near)
                if likeness >= near.threshold:
                    join(parent, place, other)
                the_same = the_same or likeness == 1
            compared += 8
            others = others[8:]
        if not the_same:  # who is near to it is near to its twin too
            with_candidates.keep(place, buckets)
    with_candidates.close()
    of_all = roots(parent, np.arange(evidence.num_rows))
    return [of_all[first : first + one.num_rows] for first, one in zip(evidence.firsts.tolist(), surveys, strict=True)]


# ---- sets that are joined (union-find; a set's smallest member is its root) ----


def root(parent: np.ndarray, place: int) -> int:
    """The root of one member's set; the way there is halved."""
    while (above := int(parent[place])) != place:
        parent[place] = parent[above]
        place = int(parent[place])
    return place


def roots(parent: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The root of each member's set."""
    import numpy as np

    found: np.ndarray = parent[places]
    while not np.array_equal(above := parent[found], found):
        found = above
    parent[places] = found
    return found


def join(parent: np.ndarray, a: int, b: int) -> None:
    """Make one set of two."""
    a, b = root(parent, a), root(parent, b)
    parent[max(a, b)] = min(a, b)


# ---- what was surveyed ----


class Evidence:
    """What shards keep of their texts, by row counted over all shards; texts that were asked for lately are held."""

    def __init__(self, surveys: Sequence[Survey], near: Nearness) -> None:
        import numpy as np

        dtype = np.uint64 if near.verify else np.uint32
        sizes = np.array([one.num_rows for one in surveys], dtype=np.int64)
        ends = np.cumsum(sizes)
        self.num_rows = int(ends[-1]) if len(ends) else 0
        self.firsts = ends - sizes
        self._mapped = lru_cache(maxsize=MAPS_OPEN)(lambda shard: Ragged(surveys[shard].folder, "evidence", dtype))

        def read(row: int) -> np.ndarray:
            shard = int(np.searchsorted(ends, row, side="right"))
            values = self._mapped(shard)[row - int(self.firsts[shard])]
            return np.unique(values) if near.verify else np.array(values)

        self._read = lru_cache(maxsize=2048)(read)

    def __getitem__(self, row: int) -> np.ndarray:
        """Sorted shingles without repeats, or the signature."""
        values: np.ndarray = self._read(row)
        return values


@dataclass(frozen=True)
class _Band:
    """One band's keys, those of one part."""

    band: int
    part: int
    num_parts: int
    surveys: tuple[Survey, ...]
    place_of: Path | None
    target: Path


def _find_shared(task: _Band) -> None:
    """Write who shares a key of this band: places in order (places.npy), each one's bucket (buckets.npy), and the buckets' sizes (sizes.npy)."""
    import numpy as np

    place_of = np.load(task.place_of, mmap_mode="r") if task.place_of else None
    all_keys, all_places = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    first = 0
    for one in task.surveys:
        keys = np.load(one.folder / "bands.npy", mmap_mode="r")[task.band]
        mine = np.flatnonzero((keys != EMPTY) & (keys % np.uint64(task.num_parts) == task.part))
        all_keys.append(keys[mine])
        all_places.append(mine + first if place_of is None else place_of[mine + first])
        first += one.num_rows
    keys, places = np.concatenate(all_keys), np.concatenate(all_places)
    by_key = np.argsort(keys, kind="stable")
    keys, places = keys[by_key], places[by_key]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.append(begins, len(keys)))
    places, sizes = places[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]
    buckets = np.repeat(np.arange(len(sizes)), sizes)
    by_place = np.argsort(places, kind="stable")
    task.target.mkdir()
    np.save(task.target / "places.npy", places[by_place])
    np.save(task.target / "buckets.npy", buckets[by_place])
    np.save(task.target / "sizes.npy", sizes)


class Candidates:
    """Goes through the texts that share a band with another, in order, and knows which of those before were kept in which bucket.

    A bucket is a key of a band that several texts share.
    """

    def __init__(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel, near: Nearness, order: np.ndarray | None) -> None:
        import numpy as np

        folder.mkdir()
        self.folder = folder
        place_of = None
        if order is not None:
            place_of = folder / "place_of.npy"
            inverse = np.empty_like(order)
            inverse[order] = np.arange(len(order))
            np.save(place_of, inverse)
        num_parts = -(-sum(one.num_rows for one in surveys) // PART_TEXTS) or 1
        tasks = [
            _Band(band, part, num_parts, tuple(surveys), place_of, folder / f"{band:03d}-{part:04d}")
            for band in range(near.num_bands)
            for part in range(num_parts)
        ]
        parallel(_find_shared, tasks)
        self._places = [np.load(task.target / "places.npy", mmap_mode="r") for task in tasks]
        self._buckets = [np.load(task.target / "buckets.npy", mmap_mode="r") for task in tasks]
        sizes = [np.load(task.target / "sizes.npy") for task in tasks]
        self._base = np.cumsum([0, *map(len, sizes)])  # buckets before each task's
        of_all = np.concatenate(sizes)
        self._starts = on_disk(folder / "starts.npy", np.cumsum(of_all) - of_all)
        self._filled = on_disk(folder / "filled.npy", np.zeros(len(of_all), dtype=np.int64))
        self._slots = on_disk(folder / "slots.npy", np.zeros(int(of_all.sum()), dtype=np.int64))

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (place, its buckets), in order of places."""
        import numpy as np

        at = [0] * len(self._places)
        end = max((int(places[-1]) + 1 for places in self._places if len(places)), default=0)
        for first in range(0, end, PLACES_AT_ONCE):
            places, buckets = [], []
            for number, (all_places, all_buckets) in enumerate(zip(self._places, self._buckets, strict=True)):
                until = int(np.searchsorted(all_places, first + PLACES_AT_ONCE))
                places.append(np.array(all_places[at[number] : until]))
                buckets.append(all_buckets[at[number] : until] + self._base[number])
                at[number] = until
            of_chunk, in_chunk = np.concatenate(places), np.concatenate(buckets)
            by_place = np.argsort(of_chunk, kind="stable")
            of_chunk, in_chunk = of_chunk[by_place], in_chunk[by_place]
            distinct, begins = np.unique(of_chunk, return_index=True)
            yield from zip(distinct.tolist(), np.split(in_chunk, begins[1:]), strict=True) if len(distinct) else ()

    def before(self, buckets: np.ndarray) -> np.ndarray:
        """Places that were kept in these buckets: those in most of them first, of equals the earliest."""
        import numpy as np

        filled = self._filled[buckets]
        total = int(filled.sum())
        if not total:
            return np.zeros(0, dtype=np.int64)
        counts = filled
        if total > MAX_MET:
            by_size = np.argsort(filled, kind="stable")
            buckets, filled = buckets[by_size], filled[by_size]
            counts = np.clip(MAX_MET - (np.cumsum(filled) - filled), 0, filled)
            total = MAX_MET
        begins = np.repeat(self._starts[buckets] + filled - counts - (np.cumsum(counts) - counts), counts)
        found, times = np.unique(self._slots[begins + np.arange(total)], return_counts=True)
        return found[np.argsort(-times, kind="stable")]

    def keep(self, place: int, buckets: np.ndarray) -> None:
        """Let those after meet it."""
        self._slots[self._starts[buckets] + self._filled[buckets]] = place
        self._filled[buckets] += 1

    def close(self) -> None:
        """Take the files away."""
        shutil.rmtree(self.folder)


def on_disk(path: Path, values: np.ndarray) -> np.ndarray:
    """The same values in a file that is mapped: its pages need not stay in memory."""
    import numpy as np

    np.save(path, values)
    return np.asarray(np.load(path, mmap_mode="r+")) if values.size else values
