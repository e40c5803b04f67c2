"""What is kept of every row: records of fixed size and short lines, on disk where there are many. Knows nothing about what they mean.

Both start in memory, as a worker fills them, and travel by pickle; the one that collects them is given a folder and writes there,
so that its memory does not grow with the rows.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

NUM_BUCKETS = 64  # 10 million rows of 14 bytes: 2 MB a bucket
BUFFER_BYTES = 4 << 20  # kept before files are written to: small data never touches the disk
BLOCK_LINES = 2000


def key_of(text: str | bytes) -> int:
    """64 bits of the hash of a text; never 0. Two texts of 10 million are taken for equal wrongly with a chance of 3e-6."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


class Records:
    """Records (a numpy dtype with a field `key` of 64 bits and a field `row`), read back a range of keys at a time.

    Args:
        dtype: fields as numpy takes them: [("key", "<u8"), ("row", "<u4")].
    """

    def __init__(self, dtype: list[tuple[str, str]]) -> None:
        self.dtype = dtype
        self.fresh: list[tuple[Any, ...]] = []
        self.held: list[np.ndarray] = []
        self.held_bytes = 0
        self.folder: Path | None = None

    def add(self, *values: Any) -> None:
        """Keep one record."""
        self.fresh.append(values)

    def extend(self, records: np.ndarray) -> None:
        """Keep many."""
        if not len(records):
            return
        self.held.append(records)
        self.held_bytes += records.nbytes
        if self.folder is not None and self.held_bytes >= BUFFER_BYTES:
            self._write()

    def close(self) -> None:
        """Pack what was added one by one."""
        import numpy as np

        if self.fresh:
            fresh, self.fresh = self.fresh, []
            self.extend(np.array(fresh, dtype=self.dtype))

    def merge(self, other: Records, first: int) -> None:
        """Take another's records, whose rows are counted from `first` here."""
        self.close()
        other.close()
        for records in other.held:
            moved = records.copy()
            moved["row"] += first
            self.extend(moved)

    def spill(self, folder: Path) -> None:
        """Write into this folder (made here) from now on."""
        folder.mkdir(parents=True)
        self.folder = folder

    def buckets(self) -> Iterator[np.ndarray]:
        """Yield every record, sorted by key, then row; those with equal keys come together."""
        import numpy as np

        self.close()
        if self.folder is None or not any(self.folder.iterdir()):
            if self.held:
                yield _sorted(np.concatenate(self.held))
            return
        self._write()
        for bucket in range(NUM_BUCKETS):
            path = self.folder / f"{bucket:02d}.bin"
            if path.is_file():
                yield _sorted(np.fromfile(path, dtype=self.dtype))

    def _write(self) -> None:
        import numpy as np

        if not self.held or self.folder is None:
            return
        records = np.concatenate(self.held)
        self.held, self.held_bytes = [], 0
        bucket = (records["key"] >> np.uint64(58)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(NUM_BUCKETS + 1))
        for number in range(NUM_BUCKETS):
            if ends[number] < ends[number + 1]:
                with (self.folder / f"{number:02d}.bin").open("ab") as stream:
                    stream.write(records[order[ends[number] : ends[number + 1]]].tobytes())


class Lines:
    """One short line for each row, by its number; compressed in blocks."""

    def __init__(self) -> None:
        self.fresh: list[str] = []
        self.blocks: list[tuple[int, int, bytes | tuple[int, int]]] = []  # first row, rows, the block or its place in the file
        self.count = 0
        self.path: Path | None = None
        self.size = 0

    def add(self, line: str) -> None:
        """Keep the line of the next row."""
        self.fresh.append(line.replace("\n", " "))
        if len(self.fresh) >= BLOCK_LINES:
            self.close()

    def pad(self, count: int) -> None:
        """Give an empty line to every row before row `count` that has none."""
        for _ in range(count - self.count - len(self.fresh)):
            self.add("")

    def close(self) -> None:
        """Pack what was added one by one."""
        if self.fresh:
            block = zlib.compress("\n".join(self.fresh).encode("utf-8", "surrogatepass"), 1)
            count, self.fresh = len(self.fresh), []
            self._append(count, block)

    def merge(self, other: Lines) -> None:
        """Take the lines of the rows that follow."""
        self.close()
        other.close()
        for _, count, block in other.blocks:
            self._append(count, other._read(block))

    def spill(self, path: Path) -> None:
        """Write into this file from now on."""
        self.path = path

    def fetch(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the lines of some rows, each block unpacked once."""
        self.close()
        found: dict[int, str] = {}
        wanted = sorted(set(numbers))
        place = 0
        for first, count, block in self.blocks:
            if place == len(wanted):
                break
            if wanted[place] >= first + count:
                continue
            lines = zlib.decompress(self._read(block)).decode("utf-8", "surrogatepass").split("\n")
            while place < len(wanted) and wanted[place] < first + count:
                found[wanted[place]] = lines[wanted[place] - first]
                place += 1
        return found

    def named(self, numbers: Sequence[int]) -> list[str]:
        """The lines of some rows, in the order asked."""
        found = self.fetch(numbers)
        return [found[number] for number in numbers]

    def _append(self, count: int, block: bytes) -> None:
        if self.path is None:
            self.blocks.append((self.count, count, block))
        else:
            with self.path.open("ab") as stream:
                stream.write(block)
            self.blocks.append((self.count, count, (self.size, len(block))))
            self.size += len(block)
        self.count += count

    def _read(self, block: bytes | tuple[int, int]) -> bytes:
        if isinstance(block, bytes):
            return block
        assert self.path is not None
        with self.path.open("rb") as stream:
            stream.seek(block[0])
            return stream.read(block[1])


def _sorted(records: np.ndarray) -> np.ndarray:
    import numpy as np

    return records[np.lexsort((records["row"], records["key"]))]
