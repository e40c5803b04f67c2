"""Rows of a data set on the Hugging Face Hub, or in its local cache, through `datasets`. Knows nothing about what a row says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from largeforge.artifact import sha256_of
from largeforge.data.files import files_hash
from largeforge.data.record import Record
from largeforge.errors import InputError

T = TypeVar("T")


class HubRows:
    """One split of a data set: memory-mapped from the cache that `datasets` keeps, or streamed.

    Args:
        name: org/name, or a folder that `datasets` can load.
        split: which part.
        revision: commit, tag or branch; None is the newest.
        subset: of a data set that has several; None is its only one.
        streaming: read rows as they come, and keep none on disk.
    """

    def __init__(self, name: str, *, split: str, revision: str | None, subset: str | None = None, streaming: bool = False) -> None:
        self.name = name
        self.split = split
        self.revision = revision
        self.subset = subset
        self.streaming = streaming
        self._loaded: Any = None

    def records(self) -> Iterator[Record]:
        """Stream the rows, with the data set's name and the row's number."""
        rows = iter(self._dataset())
        number = 0
        while (value := self._asked(lambda: next(rows, None))) is not None:
            number += 1
            yield Record(value, f"{self.name}[{self.split}] row {number}")

    def fingerprint(self) -> str:
        """sha256 of the bytes that `datasets` holds; of a streamed set, of the names and versions of its files (the commit is in them)."""
        if not self.streaming:
            return files_hash([Path(file["filename"]) for file in self._dataset().cache_files])
        return hashlib.sha256(repr(self._asked(self._files)).encode()).hexdigest()

    def __len__(self) -> int:
        return 0 if self.streaming else len(self._dataset())

    # ---- inside ----

    def _files(self) -> list[Any]:
        import datasets

        builder = datasets.load_dataset_builder(self.name, self.subset, revision=self.revision)
        files = (builder.config.data_files or {}).get(self.split, [])
        local = {file: sha256_of(Path(file)) for file in files if Path(file).is_file()}
        return [self.subset, self.split, [local.get(file, file) for file in files], [] if local else getattr(files, "origin_metadata", [])]

    def _dataset(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        import datasets

        return self._asked(lambda: datasets.load_dataset(self.name, self.subset, split=self.split, revision=self.revision, streaming=self.streaming))

    def _asked(self, question: Callable[[], T]) -> T:
        """What `datasets` answers; what it raises becomes one error that says what to do."""
        from datasets.exceptions import DatasetsError

        try:
            return question()
        except ValueError as fault:
            reason = str(fault)
            if "split" in reason:
                raise InputError(f"data.split = {self.split}: {self.name} has no such split ({reason}).", next_step="data.split=NAME") from fault
            if "onfig name is missing" in reason or "BuilderConfig" in reason:
                shown = " ".join(reason.split())
                raise InputError(f"data.subset = {self.subset or 'null'}: {self.name} has several ({shown}).", next_step="data.subset=NAME") from fault
            raise self._unreachable(fault) from fault
        except (OSError, RuntimeError, DatasetsError) as fault:  # no network, no such data set, gated, a loading script, broken files
            raise self._unreachable(fault) from fault

    def _unreachable(self, fault: Exception) -> InputError:
        where = self.name if self.revision is None else f"{self.name} at {self.revision}"
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        return InputError(
            f"data.path = {self.name}: the data set {where} cannot be had from the Hub or its local cache ({type(fault).__name__}: {reason}).",
            next_step="check the name and the network (HF_HUB_OFFLINE must not be set; a gated one needs `hf auth login`), "
            "or download it elsewhere and give its files: data.path=FILE",
        )
