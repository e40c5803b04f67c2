"""Raw rows of any kind, and slices of them that processes read side by side. Knows nothing about steps or about tokens.

A slice is a range of a file where the file can be entered in the middle (JSON Lines, Parquet, Arrow, a data artifact). What cannot (CSV, JSON, a Hub
data set, a mix, a limit) is read once, here, and spilled: canonical rows with their origins, one file a slice, each whole or not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.contract import Reference
from largeforge.data.files import LINES, TABLE_SUFFIXES, jsonl_slices, records
from largeforge.data.formats import Layout, detect, read_row
from largeforge.data.hub import HubRows
from largeforge.data.record import Record, Slice
from largeforge.data.rows import BadRow, Row, canonical
from largeforge.data.sources import Source, called, find_sources, in_one_stream, is_mixed, paths_of, records_of, refuse_unused
from largeforge.data.tables import table_slices
from largeforge.data.writing import read_layout
from largeforge.errors import InputError

if TYPE_CHECKING:
    from largeforge.contract import Bar, Progress, Storage
    from largeforge.data.config import RawConfig
    from largeforge.data.shards import DataFolder

LOOKED_AT = 1000  # records whose fields may tell a file's layout; where none does, each is asked by itself


@dataclass(frozen=True)
class RowSlice:
    """A part of the raw rows, to be read by `read_slice` in any process.

    Args:
        part: of which file.
        shown: what origins call that file.
        layout: of its records; None asks each record.
        spilled: whether its lines are rows already.
        artifact: id of the data artifact that the rows stand in; "" is none.
        split: which split of it.
        lineage: what the artifact knows about each of these rows.
    """

    part: Slice
    shown: str
    layout: Layout | None
    spilled: bool = False
    artifact: str = ""
    split: str = "train"
    lineage: Slice | None = None


class Rows:
    """Rows of chat, of preferences or of text from files, buckets, artifacts or the Hub, as task=prepare reads them."""

    def __init__(self, config: RawConfig, *, storage: Storage | None = None, progress: Progress | None = None, layout: Layout | None = None) -> None:
        """Read what a config's paths mean; `layout` is the only one that is read, None what `data.format` says."""
        self.config = config
        self.layout = layout
        self.storage = storage
        self.progress = progress
        refuse_unused(config)

    def sources(self) -> list[Reference]:
        """Where the rows come from: each path with the hash of its bytes."""
        return [source.reference() for source in self._sources]

    def expected_rows(self) -> int | None:
        """Rows that will be read, where that is quick to know."""
        counts = [source.count() for source in self._sources]
        known = None if None in counts or is_mixed(self.config.mix) else sum(count for count in counts if count is not None)
        return known if self.config.limit is None else min(self.config.limit, known or self.config.limit)

    def rows(self) -> Iterator[Row | BadRow]:
        """Stream every row in this process: paths in order, or mixed; at most `data.limit` good ones."""
        return in_one_stream(self._sources, self.config.mix, self._read, limit=self.config.limit)

    def slices(self, rows_per_slice: int, folder: Path) -> Iterator[RowSlice]:
        """Cut the rows into slices of so many raw rows, the same ones at every call; the last one of a file has what is left.

        Args:
            rows_per_slice: lines or rows of each.
            folder: for what must be spilled; made where it is needed.

        Raises:
            InputError: a file that cannot be read, or no rows at all.
        """
        bar = self.progress.bar("reading", total=None, unit="rows") if self.progress else None
        number = 0
        try:
            for piece in self._cut(rows_per_slice, folder, bar):
                number += 1
                yield piece
        finally:
            if bar is not None:
                bar.close()
        if not number:
            raise InputError(f"data.path = {', '.join(paths_of(self.config))} holds no rows.", next_step="give a file with rows: data.path=FILE")

    # ---- inside ----

    @cached_property
    def _sources(self) -> list[Source]:
        return find_sources(self.config, paths_of(self.config), storage=self.storage)

    @property
    def _named_layout(self) -> Layout | None:
        named: Any = self.layout or getattr(self.config, "format", None)
        return None if named == "auto" else named

    def _cut(self, rows_per_slice: int, folder: Path, bar: Bar | None) -> Iterator[RowSlice]:
        numbers = iter(range(10**9))

        def spill(rows: Iterator[Row | BadRow]) -> Iterator[RowSlice]:
            return spilled(rows, rows_per_slice, lambda: folder / f"{next(numbers):05d}.jsonl", bar)

        if is_mixed(self.config.mix) or self.config.limit is not None:
            yield from spill(self.rows())
            return
        for source in self._sources:
            if source.artifact is not None:
                yield from self._artifact_slices(source, rows_per_slice, spill)
            for piece in source.pieces():
                parts = None if isinstance(piece, HubRows) else parts_of(piece, rows_per_slice)
                if parts is None or isinstance(piece, HubRows):
                    yield from spill(self._piece_rows(source, piece))
                    continue
                layout = self._named_layout or self._detected(piece)
                for part in parts:
                    if bar is not None:
                        bar.advance(part.num_rows)
                    yield RowSlice(part, source.shown(piece), layout)

    def _artifact_slices(self, source: Source, rows_per_slice: int, spill: Callable[[Iterator[Row | BadRow]], Iterator[RowSlice]]) -> Iterator[RowSlice]:
        data = source.artifact
        assert data is not None
        layout = read_layout(data.summary["layout"], data.kind)
        for split, file, lineage in artifact_files(data):
            parts = parts_of(file, rows_per_slice)
            if parts is None:
                yield from spill(read_artifact_rows(file, lineage, data.artifact.id, split, layout))
                continue
            for part, known in zip(parts, jsonl_slices(lineage, rows_per_slice), strict=True):  # line i of the one belongs to row i of the other
                yield RowSlice(part, str(file), layout, artifact=data.artifact.id, split=split, lineage=known)

    def _read(self, source: Source) -> Iterator[Row | BadRow]:
        if source.artifact is not None:
            layout = read_layout(source.artifact.summary["layout"], source.artifact.kind)
            for split, file, lineage in artifact_files(source.artifact):
                yield from read_artifact_rows(file, lineage, source.artifact.artifact.id, split, layout)
        for piece in source.pieces():
            yield from self._piece_rows(source, piece)

    def _piece_rows(self, source: Source, piece: Path | HubRows) -> Iterator[Row | BadRow]:
        items = records_of(source, piece)
        cells = isinstance(piece, Path) and piece.suffix.lower() in (".csv", ".tsv")
        looked: list[Record | BadRow] = []
        layout = self._named_layout
        while layout is None and len(looked) < LOOKED_AT and (item := next(items, None)) is not None:
            looked.append(item)
            layout = self._shown_by(item)
        for item in chain(looked, items):
            yield item if isinstance(item, BadRow) else read_row(item.value, item.origin, layout, empty_is_absent=cells)

    def _detected(self, file: Path) -> Layout | None:
        """The layout that the first records of a file show."""
        return next((found for item in islice(records(file), LOOKED_AT) if (found := self._shown_by(item))), None)

    @staticmethod
    def _shown_by(item: Record | BadRow) -> Layout | None:
        return detect(item.value) if isinstance(item, Record) and isinstance(item.value, dict) else None


def read_slice(piece: RowSlice) -> Iterator[Row | BadRow]:
    """Stream the rows of a slice; imports neither torch nor `datasets`. Raises InputError where its file cannot be read."""
    if piece.spilled:
        yield from _read_spilled(piece.part.file)
    elif piece.lineage is not None:
        yield from read_artifact_rows(piece.part, piece.lineage, piece.artifact, piece.split, piece.layout)
    else:
        for item in called(records(piece.part), piece.part.file, piece.shown):
            yield item if isinstance(item, BadRow) else read_row(item.value, item.origin, piece.layout)


def read_artifact_rows(source: Path | Slice, lineage: Path | Slice, artifact: str, split: str, layout: Layout | None) -> Iterator[Row | BadRow]:
    """Stream the rows of an artifact's file, or of a slice of it: an origin names the artifact's id and the row's, and its lineage goes on."""
    cells = isinstance(source, Path) and source.suffix == ".csv"
    for item, known in zip(records(source), records(lineage), strict=True):
        row = item if isinstance(item, BadRow) else read_row(item.value, item.origin, layout, empty_is_absent=cells)
        if isinstance(row, BadRow) or isinstance(known, BadRow):
            yield row
            continue
        facts = {name: value for name, value in known.value.items() if name not in ("id", "origin", "changed")}
        yield Row(row.content, f"artifact {artifact[:12]} row {known.value['id']}", {**facts, "before": known.value["origin"]}, split)


def artifact_files(data: DataFolder) -> Iterator[tuple[str, Path, Path]]:
    """Split, file of rows and file of their lineage, in order."""
    from largeforge.data.shards import lineage_file

    for split in data.splits:
        for number, file in enumerate(data.files(split)):
            yield split, file, lineage_file(data.folder, split, number)


def parts_of(file: Path, rows_per_slice: int) -> Sequence[Slice] | Iterator[Slice] | None:
    """The slices of a file that can be entered in the middle; None for one that must be read from its beginning."""
    suffix = file.suffix.lower()
    if suffix in LINES:
        return jsonl_slices(file, rows_per_slice)
    return table_slices(file, rows_per_slice) if suffix in TABLE_SUFFIXES else None


def spilled(rows: Iterator[Row | BadRow], rows_per_slice: int, place: Callable[[], Path], bar: Bar | None) -> Iterator[RowSlice]:
    """Write rows into files of so many, each whole or not there; yield each as it stands."""
    while first := next(rows, None):
        file = place()
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        count = 0
        try:
            with draft.open("wb") as stream:
                for row in chain([first], islice(rows, rows_per_slice - 1)):
                    count += 1
                    stream.write(_spilled_line(row))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)
        if bar is not None:
            bar.advance(count)
        yield RowSlice(Slice(file, 0, file.stat().st_size, 1, count), str(file), None, spilled=True)


def _spilled_line(row: Row | BadRow) -> bytes:
    if isinstance(row, BadRow):
        return canonical({"bad": asdict(row)}) + b"\n"
    return canonical({"content": row.content, "origin": row.origin, "split": row.split, "lineage": row.lineage}) + b"\n"


def _read_spilled(file: Path) -> Iterator[Row | BadRow]:
    import orjson

    with file.open("rb") as stream:
        for line in stream:
            value = orjson.loads(line)
            yield BadRow(**value["bad"]) if "bad" in value else Row(value["content"], value["origin"], value["lineage"], value["split"])
