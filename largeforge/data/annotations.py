"""What was computed about every row before training, beside the tokens in the cache: one memory-mapped Arrow file a split.

Knows nothing about what the values mean. An entry is written whole or not at all; of several processes one computes and the others wait.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.batch import Annotation
from largeforge.data.cache import TokenTable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from largeforge.contract import Bar

CHUNK = 256  # rows whose values are held before they are written


class AnnotationTable:
    """Columns of values, a list for each row of a table. Pickled by its paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    @property
    def path(self) -> Path:
        """The last file."""
        return self.paths[-1]

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Every column's values of these rows, one row's after another's (float32 or int32)."""
        import numpy as np
        import torch

        found = {}
        for reader in self._readers:
            for name in reader.schema.names:
                values = [self._values(reader, name, row) for row in rows]
                dtype = reader.schema.field(name).type.value_type.to_pandas_dtype()
                found[name] = torch.from_numpy(np.concatenate(values) if values else np.zeros(0, dtype=dtype))
        return found

    def scalars(self, column: str) -> np.ndarray:
        """The first value of each row, for a column with one a row."""
        import numpy as np

        reader = next(reader for reader in self._readers if column in reader.schema.names)
        parts = [reader.get_batch(index).column(column).values.to_numpy() for index in range(reader.num_record_batches)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    @staticmethod
    def _values(reader: Any, name: str, row: int) -> np.ndarray:
        import numpy as np

        batch, at = divmod(row, CHUNK)
        return np.array(reader.get_batch(batch).column(name)[at].values.to_numpy())

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    @cached_property
    def _readers(self) -> list[Any]:
        import pyarrow as pa

        return [pa.ipc.open_file(pa.memory_map(str(path))) for path in self.paths]


def annotate(
    path: Path, annotation: Annotation, table: TokenTable, *, batch_of: Callable[[list[int]], Any], rows_per_batch: int, per_row: int, bar: Bar
) -> None:
    """Compute an annotation for every row of a table, unless the file is there.

    Args:
        path: of the Arrow file.
        annotation: what is computed.
        table: its lengths put rows of like size together.
        batch_of: rows of the table -> a micro-batch.
        rows_per_batch: rows of the data set in each.
        per_row: rows of the table for each of those.
        bar: counts rows of the table.
    """
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.is_file():
            return
        schema = pa.schema([(name, pa.list_(pa.int32() if kind == "int32" else pa.float32())) for name, kind in annotation.columns.items()])
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with draft.open("wb") as stream:
                with pa.ipc.new_file(stream, schema) as writer:
                    for start in range(0, len(table), CHUNK):
                        rows = range(start, min(start + CHUNK, len(table)))
                        values = _computed(annotation, table, rows, batch_of, rows_per_batch, per_row, bar)
                        arrays = [pa.array([values[row][name] for row in rows], type=schema.field(name).type) for name in schema.names]
                        writer.write_batch(pa.record_batch(arrays, schema=schema))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def _computed(
    annotation: Annotation, table: TokenTable, rows: range, batch_of: Callable[[list[int]], Any], rows_per_batch: int, per_row: int, bar: Bar
) -> dict[int, dict[str, Any]]:
    """Values of these rows by row: asked in micro-batches of rows of like length."""
    units = [list(rows[at : at + per_row]) for at in range(0, len(rows), per_row)]
    units.sort(key=lambda unit: (-max(int(table.lengths[row]) for row in unit), unit))
    found: dict[int, dict[str, Any]] = {}
    for at in range(0, len(units), rows_per_batch):
        asked = [row for unit in units[at : at + rows_per_batch] for row in unit]
        answers = annotation.compute(batch_of(asked))
        for number, row in enumerate(asked):
            found[row] = {name: answers[name][number] for name in annotation.columns}
        bar.advance(len(asked))
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel gives it back when the process ends, however it ends
        yield
