"""Rows of a data set on the Hugging Face Hub, or in its local cache, through `datasets`. Knows nothing about what a row says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.data.files import Record, files_hash
from largeforge.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


class HubRows:
    """One split of a data set, memory-mapped from the cache that `datasets` keeps.

    Args:
        name: org/name, or a folder that `datasets` can load.
        split: which part.
        revision: commit, tag or branch; None is the newest.
    """

    def __init__(self, name: str, *, split: str, revision: str | None) -> None:
        self.name = name
        self.split = split
        self.revision = revision
        self._loaded: Dataset | None = None

    def records(self) -> Iterator[Record]:
        """Stream the rows, with the data set's name and the row's number."""
        for number, value in enumerate(self._dataset(), start=1):
            yield Record(value, f"{self.name}[{self.split}] row {number}")

    def fingerprint(self) -> str:
        """sha256 of the bytes that `datasets` holds."""
        return files_hash([Path(file["filename"]) for file in self._dataset().cache_files])

    def __len__(self) -> int:
        return len(self._dataset())

    def _dataset(self) -> Dataset:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(self.name, split=self.split, revision=self.revision)
        except ValueError as fault:
            if "split" not in str(fault):
                raise self._unreachable(fault) from fault
            raise InputError(f"data.split = {self.split}: {self.name} has no such split ({fault}).", next_step="data.split=NAME") from fault
        except (OSError, RuntimeError) as fault:  # no network, no such data set, gated, a loading script
            raise self._unreachable(fault) from fault

    def _unreachable(self, fault: Exception) -> InputError:
        where = self.name if self.revision is None else f"{self.name} at {self.revision}"
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        return InputError(
            f"data.path = {self.name}: the data set {where} cannot be had from the Hub or its local cache ({type(fault).__name__}: {reason}).",
            next_step="check the name and the network (HF_HUB_OFFLINE must not be set; a gated one needs `hf auth login`), "
            "or download it elsewhere and give its files: data.path=FILE",
        )
