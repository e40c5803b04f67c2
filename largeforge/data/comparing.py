"""Which rows came, went and changed between two data artifacts. Memory: 24 bytes a row, and the rows that went."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.data.rows import Row, canonical
from largeforge.data.shards import DataFolder, open_data
from largeforge.data.step.exact_duplicates import prompt_of

if TYPE_CHECKING:
    import numpy as np

SHOWN = 160


class Comparison:
    """Compares two data artifacts by their rows' ids.

    A row that is only in one of them came or went; where one that went and one that came have the same question, or came from the same place
    of the same source, the row changed. A row in another split than before moved.

    Args:
        a: folder of the artifact before.
        b: of the one after.
    """

    columns = ("id", "origin", "row")
    names = ("came", "went", "changed", "moved")
    same = "No row differs."

    def __init__(self, a: Path, b: Path) -> None:
        self.a, self.b = open_data(a), open_data(b)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Stream every difference: {"what": "came" | "went" | "changed" | "moved", "id", "origin", "row" ...}; of a change "before" too."""
        import numpy as np

        ids_a, ids_b = _Ids(self.a), _Ids(self.b)
        gone = {name: _Match() for name in ("origin", "prompt")}
        went: list[Row] = []
        for row in self._only(self.a, ids_b):
            for name, match in gone.items():
                match.add(_mark(row, name))
            went.append(row)
        for match in gone.values():
            match.seal()
        taken = np.zeros(len(went), dtype=bool)
        for row in self._only(self.b, ids_a):
            at = next((place for name, match in gone.items() for place in match.places(_mark(row, name)) if not taken[place]), None)
            if at is None:
                yield _line("came", row)
            else:
                taken[at] = True
                yield {**_line("changed", row), "before": {"id": went[at].id, "row": went[at].content}}
        for place, row in enumerate(went):
            if not taken[place]:
                yield _line("went", row)
        for split in self.b.splits:
            for row in self.b.rows(split):
                before = ids_a.split_of(row.id)
                if before is not None and before != split:
                    yield {**_line("moved", row), "from": before, "to": split}

    @staticmethod
    def metric(name: str) -> str:
        """What result.json calls a count."""
        return f"rows_{name}"

    @staticmethod
    def cells(line: dict[str, Any]) -> tuple[str, str, str]:
        """A row of the table."""
        after = _short(json.dumps(line["row"], ensure_ascii=False))
        said = f"{_short(json.dumps(line['before']['row'], ensure_ascii=False))}\n-> {after}" if "before" in line else after
        return (line["id"][:12], line["origin"], said)

    @staticmethod
    def _only(data: DataFolder, others: _Ids) -> Iterator[Row]:
        for split in data.splits:
            for row in data.rows(split):
                if others.split_of(row.id) is None:
                    yield row


class _Ids:
    """The ids of an artifact's rows, sorted, with the split of each."""

    def __init__(self, data: DataFolder) -> None:
        import numpy as np

        self.names = list(data.splits)
        pairs = [(known["id"], number) for number, split in enumerate(self.names) for known in data.lineage(split)]
        ids = np.array([int(known[:16], 16) for known, _ in pairs], dtype=np.uint64)
        order = np.argsort(ids, kind="stable")
        self.ids = ids[order]
        self.splits = np.array([number for _, number in pairs], dtype=np.int8)[order]

    def split_of(self, row_id: str) -> str | None:
        import numpy as np

        wanted = np.uint64(int(row_id[:16], 16))
        place = int(np.searchsorted(self.ids, wanted))
        return self.names[int(self.splits[place])] if place < len(self.ids) and self.ids[place] == wanted else None


class _Match:
    """Marks by hash: finds the places where a mark stands."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def add(self, mark: int) -> None:
        self._marks.append(mark)

    def seal(self) -> None:
        import numpy as np

        marks = np.array(self._marks, dtype=np.uint64)
        self._order: np.ndarray = np.argsort(marks, kind="stable")
        self._sorted: np.ndarray = marks[self._order]
        self._marks = []

    def places(self, mark: int) -> list[int]:
        import numpy as np

        first, end = (int(np.searchsorted(self._sorted, np.uint64(mark), side=side)) for side in ("left", "right"))
        found: list[int] = self._order[first:end].tolist()
        return found


def _mark(row: Row, name: str) -> int:
    said = row.origin.encode() if name == "origin" else canonical({"prompt": prompt_of(row)})
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")


def _line(what: str, row: Row) -> dict[str, Any]:
    return {"what": what, "id": row.id, "split": row.split, "origin": row.origin, "row": row.content}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
