"""A data artifact as a DataModule: `data=artifact`, what task=prepare or task=generate left. Knows nothing about how it was made.

Trains on one split, validates on the artifact's validation rows, and leaves its test rows alone: they are what benchmarks ask. The fingerprint is the
artifact's id, so that nothing is hashed again at start-up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.artifact import MANIFEST, is_artifact
from largeforge.chat import Example
from largeforge.contract import Reference
from largeforge.data.learnt import KINDS, example_of, learnt_rows
from largeforge.data.module import RowsModule
from largeforge.data.rows import BadRow, LearntRow
from largeforge.data.shards import DataFolder, open_data
from largeforge.errors import InputError

if TYPE_CHECKING:
    from largeforge.contract import Storage
    from largeforge.data.config import ArtifactConfig

MENDS = {
    "preference": "task=dpo, which learns from pairs; or task=prepare data.path={path} layout=messages keeps the chosen answers as rows of chat",
    "text": "task=pretrain, which learns from text; or an artifact whose rows hold an answer to learn",
    "messages": "task=sft, which learns from rows of chat; or an artifact of another kind",
}


class Artifact(RowsModule):
    """Rows from a data artifact: of chat, of pairs or of text, as the method learns from."""

    config: ArtifactConfig

    @cached_property
    def data(self) -> DataFolder:
        """The artifact, its files verified. Raises ArtifactError, InputError."""
        return open_data(find_artifact(self.config.path, storage=self.storage))

    def rows(self) -> Iterator[LearntRow | BadRow]:
        """Stream the rows of the split that is trained on."""
        return self._learnt(self.config.split)

    def validation_rows(self) -> Iterator[LearntRow | BadRow] | None:
        """The artifact's validation rows; none where it has no such split, or trains on it."""
        return self._learnt("validation") if "validation" in self._others else iter(())

    def fingerprint(self) -> str:
        """Of the artifact's id, which is the hash of what it holds, and of the split."""
        return hashlib.sha256(f"{self.data.artifact.id} {self.config.split}".encode()).hexdigest()

    @property
    def source(self) -> Reference:
        """The artifact by its id."""
        return Reference(kind="data", name=self.config.path, sha256=self.data.artifact.id)

    def heldout(self) -> list[Example]:
        """The artifact's test rows as questions; its validation rows where it has none."""
        split = next((name for name in ("test", "validation") if name in self._others), None)
        rows = self._learnt(split) if split is not None else iter(())
        examples = (example_of(row) for row in rows if not isinstance(row, BadRow))
        return [example for example in examples if example is not None]

    def expected_rows(self) -> int | None:
        """Rows that will be read."""
        return self.data.splits.get(self.config.split, 0) + (self.data.splits["validation"] if "validation" in self._others else 0)

    # ---- inside ----

    @property
    def _others(self) -> set[str]:
        return set(self.data.splits) - {self.config.split}

    def _learnt(self, split: str) -> Iterator[LearntRow | BadRow]:
        self.data.files(split)  # refuses a split that is not there
        kinds = KINDS[self.learns]
        if self.data.kind not in kinds:
            raise InputError(
                f"data.path = {self.config.path} holds rows of kind {self.data.kind}; this task learns from rows of kind {' or '.join(kinds)}.",
                next_step=MENDS[self.data.kind].format(path=self.config.path),
            )
        for row in self.data.rows(split):
            yield from learnt_rows(replace(row, origin=f"{row.origin} (row {row.id[:12]})"), self.learns)


def find_artifact(path: str, *, storage: Storage | None) -> Path:
    """The local folder of a data artifact: itself, that of the run that left it, or a copy of what a URL means. Raises InputError."""
    if storage is not None and storage.is_remote(path):
        manifest = next((file for file in storage.fetch(path) if file.name == MANIFEST), None)
        if manifest is None:
            raise InputError(f"data.path = {path} is no artifact: it holds no {MANIFEST}.", next_step=f"data=chat data.path={path}")
        return manifest.parent
    here = Path(path).expanduser()
    found = next((folder for folder in (here, here / "artifact") if is_artifact(folder)), None)
    if found is None:
        raise InputError(
            f"data.path = {path} is no artifact: it holds no {MANIFEST}.",
            next_step=f"data=chat data.path={path}" if here.exists() else "data.path=FOLDER, the artifact that task=prepare left",
        )
    return found
