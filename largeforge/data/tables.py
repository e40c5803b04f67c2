"""Records of Parquet and Arrow files, whole or a range of rows. Importing it loads no pyarrow; reading does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largeforge.data.record import Record, Slice
from largeforge.errors import InputError

_TABLE_ROWS = 512
_REACH = 4  # a slice decodes the row groups it touches from their start: they may be so many slices long


def table(file: Path, start: int = 0, stop: int | None = None) -> Iterator[Record]:
    """Parquet, or Arrow's file and stream formats (Feather and `datasets` among them); rows `start` to `stop`, counted from 0."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = start
    try:
        if file.suffix.lower() == ".parquet":
            batches, row = _row_groups(pq.ParquetFile(file), start)
        else:
            batches, row = _batches(pa.memory_map(str(file))), 0
        for batch in batches:
            begin = max(0, start - row)
            end = batch.num_rows if stop is None else min(batch.num_rows, stop - row)
            for at in range(begin, end, _TABLE_ROWS):
                part = batch.slice(at, min(_TABLE_ROWS, end - at))
                part.validate(full=True)  # a damaged file may hold lengths that lead outside of it
                for value in part.to_pylist():
                    number += 1
                    yield Record(value, f"{file} row {number}")
            row += batch.num_rows
            if stop is not None and row >= stop:
                return
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise unreadable(file, number, fault) from fault


def _row_groups(parquet: Any, start: int) -> tuple[Iterator[Any], int]:
    """Batches of a Parquet file from the row group on that holds row `start`, and the row that this group starts with."""
    row, groups = 0, list(range(parquet.metadata.num_row_groups))
    while groups and row + parquet.metadata.row_group(groups[0]).num_rows <= start:
        row += parquet.metadata.row_group(groups.pop(0)).num_rows
    return parquet.iter_batches(batch_size=_TABLE_ROWS, row_groups=groups), row


def _batches(source: Any) -> Iterator[Any]:
    """Record batches of Arrow's file format, else of its stream format; in memory one at a time."""
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def table_slices(file: Path, rows_per_slice: int, *, limit: int | None = None) -> list[Slice] | None:
    """Cut a Parquet or Arrow file into row ranges; None where a range could not be reached without reading what stands before it.

    Raises:
        InputError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix.lower() == ".parquet":
            metadata = pq.ParquetFile(file).metadata
            sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        else:
            with pa.memory_map(str(file)) as source:
                sizes = [batch.num_rows for batch in _batches(source)]
    except (pa.ArrowException, OSError) as fault:
        raise unreadable(file, 0, fault) from fault
    if max(sizes, default=0) > _REACH * rows_per_slice:
        return None
    total = sum(sizes) if limit is None else min(sum(sizes), limit)
    return [Slice(file, start, min(start + rows_per_slice, total), start + 1, min(rows_per_slice, total - start)) for start in range(0, total, rows_per_slice)]


def unreadable(file: Path, num_rows: int, fault: Exception) -> InputError:
    """What to say about a file that pyarrow refuses."""
    return InputError(f"{file} cannot be read as {file.suffix[1:]}, after {num_rows} rows: {fault}", next_step="write the file again")
