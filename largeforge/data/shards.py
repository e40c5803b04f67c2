"""A data artifact's rows on disk: canonical JSON lines by split, their lineage beside them, and a summary. Knows no steps and no teachers.

rows/<split>-00000.jsonl             one row a line (rows.canonical), where layout and file type are the default ones
summary.json                         kind, layout, file type, rows and files of every split
about/lineage/<split>-00000.jsonl    line i: id, origin and lineage of line i of rows/<split>-00000.jsonl
about/sources.json                   what origins refer to: name, revision, sha256
about/dropped.jsonl                  rows that a step left out, and why
about/audit.jsonl                    what was done (audit.py)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from largeforge.artifact import Artifact, read_artifact, write_atomically
from largeforge.contract import Reference
from largeforge.data.rows import Kind, Row, canonical
from largeforge.errors import ArtifactError, InputError

KIND = "data"
SPLITS = ("train", "validation", "test")
SUMMARY = "summary.json"
SOURCES = "about/sources.json"
DROPPED = "about/dropped.jsonl"
ROWS_PER_FILE = 100_000


class DataWriter:
    """Writes rows as they come into an artifact in the making; holds one row at a time.

    Args:
        folder: the artifact's draft (what `write_artifact` gives its `fill`).
        rows_per_file: a new file begins after so many rows of a split.
    """

    def __init__(self, folder: Path, *, rows_per_file: int = ROWS_PER_FILE) -> None:
        self.folder = folder
        self.rows_per_file = rows_per_file
        self.kinds: dict[Kind, int] = {}
        self._files: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._open: dict[str, tuple[IO[bytes], IO[bytes]]] = {}

    def add(self, row: Row) -> None:
        """Append a row to its split."""
        count = self._counts.get(row.split, 0)
        if count % self.rows_per_file == 0:
            self._begin(row.split, count // self.rows_per_file)
        rows, lineage = self._open[row.split]
        rows.write(canonical(row.content) + b"\n")
        lineage.write(lineage_line(row))
        self._counts[row.split] = count + 1
        self.kinds[row.kind] = self.kinds.get(row.kind, 0) + 1

    def close(self, *, sources: Sequence[Reference]) -> dict[str, Any]:
        """Write the summary; return it. Raises InputError where there are no rows, or rows of two kinds."""
        for pair in self._open.values():
            for stream in pair:
                stream.close()
        self._open.clear()
        splits = {split: {"num_rows": self._counts[split], "files": self._files[split]} for split in SPLITS if split in self._files}
        return write_summary(self.folder, kinds=self.kinds, splits=splits, sources=sources)

    def _begin(self, split: str, number: int) -> None:
        for stream in self._open.pop(split, ()):
            stream.close()
        rows, lineage = row_file(self.folder, split, number), lineage_file(self.folder, split, number)
        rows.parent.mkdir(parents=True, exist_ok=True)
        lineage.parent.mkdir(parents=True, exist_ok=True)
        self._open[split] = (rows.open("wb"), lineage.open("wb"))
        self._files.setdefault(split, []).append(rows.relative_to(self.folder).as_posix())


@dataclass(frozen=True)
class DataFolder:
    """A finished data artifact, to be read."""

    artifact: Artifact
    summary: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.artifact.folder

    @property
    def kind(self) -> Kind:
        kind: Kind = self.summary["kind"]
        return kind

    @property
    def splits(self) -> dict[str, int]:
        """Rows of every split."""
        return {name: int(self.summary["splits"][name]["num_rows"]) for name in SPLITS if name in self.summary["splits"]}

    def files(self, split: str) -> list[Path]:
        """The files of a split, in order. Raises InputError for one that it does not have."""
        if split not in self.summary["splits"]:
            raise InputError(f"{self.folder} has no split {split}; it has: {', '.join(self.summary['splits'])}.", next_step="data.split=train")
        return [self.folder / name for name in self.summary["splits"][split]["files"]]

    def rows(self, split: str) -> Iterator[Row]:
        """Stream the rows of a split, with their lineage."""
        for number, file in enumerate(self.files(split)):
            contents = self._contents(file)
            for content, known in zip(contents, _lines(lineage_file(self.folder, split, number)), strict=True):
                yield Row(content, known.pop("origin"), {key: value for key, value in known.items() if key != "id"}, split)

    def lineage(self, split: str) -> Iterator[dict[str, Any]]:
        """Stream what is known about where each row of a split came from: "id", "origin", "changed" ..."""
        for number, _ in enumerate(self.files(split)):
            yield from _lines(lineage_file(self.folder, split, number))

    @property
    def sources(self) -> list[Reference]:
        """What the rows were made of."""
        return [Reference(**known) for known in json.loads((self.folder / SOURCES).read_text(encoding="utf-8"))]

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Stream the rows that were left out: origin, step, reason, detail."""
        path = self.folder / DROPPED
        if path.is_file():
            yield from _lines(path)

    def _contents(self, file: Path) -> Iterator[dict[str, Any]]:
        if self.summary["layout"] == "canonical" and self.summary["file_type"] == "jsonl":
            yield from _lines(file)
            return
        from largeforge.data.files import records
        from largeforge.data.formats import read_row
        from largeforge.data.rows import BadRow
        from largeforge.data.writing import read_layout

        layout, cells = read_layout(self.summary["layout"], self.kind), file.suffix == ".csv"
        for item in records(file):
            row = item if isinstance(item, BadRow) else read_row(item.value, item.origin, layout, empty_is_absent=cells)
            if isinstance(row, BadRow):
                raise ArtifactError(f"{row}", next_step="take the artifact from where it was made again")
            yield row.content


def open_data(folder: Path, *, full: bool = False) -> DataFolder:
    """Open a data artifact, its files verified. Raises ArtifactError."""
    artifact = read_artifact(folder, kind=KIND, full=full)
    try:
        return DataFolder(artifact, json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError) as fault:
        raise ArtifactError(f"{folder / SUMMARY} cannot be read: {fault}", next_step="take the artifact from where it was made again") from fault


def row_file(folder: Path, split: str, number: int, suffix: str = ".jsonl") -> Path:
    return folder / "rows" / f"{split}-{number:05d}{suffix}"


def lineage_file(folder: Path, split: str, number: int) -> Path:
    return folder / "about" / "lineage" / f"{split}-{number:05d}.jsonl"


def lineage_line(row: Row) -> bytes:
    """What is known about a row, as one line."""
    return canonical({"id": row.id, "origin": row.origin, **row.lineage}) + b"\n"


def write_summary(
    folder: Path, *, kinds: dict[Kind, int], splits: dict[str, Any], sources: Sequence[Reference], layout: str = "canonical", file_type: str = "jsonl"
) -> dict[str, Any]:
    """Write summary.json and about/sources.json; return the summary. Raises InputError where there are no rows, or rows of two kinds."""
    if not kinds:
        raise InputError("No row is left.", next_step="look at what was left out and why, and loosen what left it out")
    if len(kinds) > 1:
        counts = ", ".join(f"{count:,} of {kind}" for kind, count in sorted(kinds.items()))
        raise InputError(f"The rows are of several kinds: {counts}; an artifact holds one.", next_step="prepare them apart: data.path=FILE data.format=...")
    summary = {"schema_version": 1, "kind": next(iter(kinds)), "layout": layout, "file_type": file_type, "splits": splits}
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=2, sort_keys=True) + "\n")
    (folder / "about").mkdir(exist_ok=True)
    write_atomically(folder / SOURCES, json.dumps([asdict(source) for source in sources], indent=2) + "\n")
    return summary


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    import orjson

    with path.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)
