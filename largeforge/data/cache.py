"""Tokenized rows on disk: one folder per key in the user's cache, memory-mapped, written whole or not at all.

Knows nothing about where rows come from or how they are batched. Two processes that make the same entry at once each write a
draft of their own; the first rename wins and the other draft is thrown away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.artifact import user_cache, write_atomically
from largeforge.batch import TokenizedRow

if TYPE_CHECKING:
    import numpy as np

FACTS = "facts.json"
ROWS_PER_BATCH = 1024
# The source that turns rows into tokens: a change in any of it makes other entries.
CODE = tuple(
    Path(__file__).with_name(name)
    for name in (
        "cache.py",
        "chat.py",
        "files.py",
        "formats.py",
        "hub.py",
        "learnt.py",
        "lint.py",
        "mask.py",
        "mix.py",
        "module.py",
        "prepared.py",
        "preference.py",
        "record.py",
        "rows.py",
        "shards.py",
        "sources.py",
        "tables.py",
        "text.py",
        "tokens.py",
    )
)


def code_hash(files: Sequence[Path] | None = None) -> str:
    """Hash of the source that turns rows into tokens, and of the libraries that it stands on."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    for file in CODE if files is None else files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    for library in ("jinja2", "tokenizers", "transformers"):
        digest.update(f"{library}={version(library)}\0".encode())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of everything in a fast tokenizer that decides ids; how it was last asked to pad or truncate does not."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    state["special"] = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def cache_key(ingredients: dict[str, Any]) -> str:
    """Name of a cache entry: 32 hex digits of the hash of what decides its content."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]


class TokenTable:
    """Tokenized rows in one memory-mapped Arrow file, and their lengths in two flat ones, mapped too: memory does not grow with the rows.

    Pickled by its path, so that a loader's workers open it themselves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32."""
        return _mapped(lengths_of(self.path))

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Supervised tokens of each row, int32."""
        return _mapped(supervised_of(self.path))

    @cached_property
    def desirable(self) -> np.ndarray:
        """1 where the answer is one to learn, int32."""
        return _mapped(desirable_of(self.path))

    def tokens(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (int32) and supervised flags (bool) of one row; arrays of the row's own."""
        import numpy as np

        batch, at = divmod(row, ROWS_PER_BATCH)
        batch_rows = self._batch(batch)
        ids = batch_rows.column("token_ids")[at].values.to_numpy()
        flags = batch_rows.column("supervised")[at].values.to_numpy(zero_copy_only=False)
        return np.array(ids), np.array(flags, dtype=bool)

    def row(self, row: int) -> TokenizedRow:
        """One row with where it came from, as plain lists."""
        ids, flags = self.tokens(row)
        return TokenizedRow(ids.tolist(), flags.tolist(), self.origin(row), bool(self.desirable[row]))

    def origin(self, row: int) -> str:
        """Where a row came from."""
        batch, at = divmod(row, ROWS_PER_BATCH)
        return str(self._batch(batch).column("origin")[at].as_py())

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    @cached_property
    def _reader(self) -> Any:
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    def _batch(self, index: int) -> Any:
        return self._reader.get_batch(index)


def lengths_of(path: Path) -> Path:
    """The file of a table's lengths: int32, little-endian, one a row."""
    return path.with_suffix(".lengths")


def supervised_of(path: Path) -> Path:
    """The file of a table's counts of supervised tokens: int32, little-endian, one a row."""
    return path.with_suffix(".supervised")


def desirable_of(path: Path) -> Path:
    """The file that says of each row whether its answer is one to learn: int32, little-endian, one a row."""
    return path.with_suffix(".desirable")


def _mapped(path: Path) -> np.ndarray:
    import numpy as np

    if not path.stat().st_size:
        return np.zeros(0, dtype="<i4")
    return np.memmap(path, dtype="<i4", mode="r")


class TableWriter:
    """Writes tokenized rows in batches of `ROWS_PER_BATCH`; holds one batch in memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._schema = pa.schema(
            [
                ("token_ids", pa.list_(pa.int32())),
                ("supervised", pa.list_(pa.bool_())),
                ("origin", pa.string()),
            ]
        )
        self._writer = pa.ipc.new_file(str(path), self._schema)
        self._flat = tuple(place(path).open("wb") for place in (lengths_of, supervised_of, desirable_of))
        self._rows: list[TokenizedRow] = []

    def add(self, row: TokenizedRow) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_BATCH:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        for stream in self._flat:
            stream.close()

    def _flush(self) -> None:
        import numpy as np
        import pyarrow as pa

        columns = [
            [row.token_ids for row in self._rows],
            [row.supervised for row in self._rows],
            [row.origin for row in self._rows],
        ]
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        numbers = np.array([[len(row.token_ids), sum(row.supervised), row.desirable] for row in self._rows], dtype="<i4")
        for stream, column in zip(self._flat, numbers.T, strict=True):
            stream.write(column.tobytes())
        self._rows.clear()


class CacheEntry:
    """One folder of tokenized rows: `train.arrow`, `validation.arrow`, `bad_rows.jsonl` and, last, `facts.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def at(cls, key: str) -> CacheEntry:
        """The entry of that key, whether it is there or not."""
        return cls(user_cache() / "tokens" / key)

    def facts(self) -> dict[str, Any] | None:
        """What was recorded when the entry was sealed; None where it is not there, or a file of it has another size than then."""
        try:
            sealed = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            sizes = sealed["sizes"]
            whole = all((self.folder / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return dict(sealed["facts"]) if whole else None

    def draft(self) -> Path:
        """A fresh folder beside this one, to fill and then to `seal`."""
        for left in self.folder.parent.glob(f".{self.folder.name}.*"):  # by a process that was killed
            if not _alive(int(left.name.split(".")[2])):
                shutil.rmtree(left, ignore_errors=True)
        folder = self._beside()
        folder.mkdir(parents=True)
        return folder

    def seal(self, draft: Path, facts: dict[str, Any]) -> None:
        """Record the facts and put a filled draft in place; where another process was first, its entry stays."""
        files = sorted(draft.iterdir())
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        sizes = {file.name: file.stat().st_size for file in files}
        write_atomically(draft / FACTS, json.dumps({"facts": facts, "sizes": sizes}, indent=2, sort_keys=True) + "\n")
        try:
            os.replace(draft, self.folder)
        except OSError:  # something stands there already
            if self.facts() is None:  # a damaged entry: out of the way with it
                damaged = self._beside()
                os.replace(self.folder, damaged)
                os.replace(draft, self.folder)
                shutil.rmtree(damaged, ignore_errors=True)
            else:
                shutil.rmtree(draft)

    def table(self, name: str) -> TokenTable:
        return TokenTable(self.folder / f"{name}.arrow")

    def _beside(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
