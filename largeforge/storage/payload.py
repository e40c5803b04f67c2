"""What a put sends: the files of a folder with their hashes, and what may stand at the other end. Sends nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from largeforge.artifact import MANIFEST, PROOF, Artifact, is_artifact, read_artifact, sha256_of
from largeforge.errors import StorageError


@dataclass(frozen=True)
class File:
    """One file to send."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Payload:
    """A folder to send.

    Args:
        files: by name below the folder, "/" between parts.
        manifest: the artifact's id; None for a folder that is no artifact.
        artifact: None for a folder that is none.
        sealed: names that the manifest names, with their hashes.
        outside_id: names that may differ between two artifacts of one id.
    """

    files: dict[str, File]
    manifest: str | None
    artifact: Artifact | None
    sealed: frozenset[str]
    outside_id: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> Payload:
        """Look at a folder; an artifact is verified in full.

        Raises:
            StorageError: no folder, or nothing in it.
            ArtifactError: its files are not what its manifest says.
        """
        if not folder.is_dir():
            raise StorageError(f"{folder} is no folder.", next_step="give an artifact: outputs/<task>/<date>/<time>/artifact")
        if is_artifact(folder):
            artifact = read_artifact(folder, full=True)
            facts = artifact.files | artifact.about
            files = {name: File(folder / name, fact["size_bytes"], fact["sha256"]) for name, fact in sorted(facts.items())}
            beside = [name for name in (PROOF, MANIFEST) if (folder / name).is_file()]
            files.update({name: _file(folder / name) for name in beside})
            return cls(files, artifact.id, artifact, frozenset(facts), frozenset({*artifact.about, PROOF}))
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        if not paths:
            raise StorageError(f"{folder} is empty.", next_step="give an artifact: outputs/<task>/<date>/<time>/artifact")
        return cls({path.relative_to(folder).as_posix(): _file(path) for path in paths}, None, None, frozenset(), frozenset())

    @property
    def told(self) -> str:
        """What this is, for a person."""
        return "no artifact" if self.artifact is None else f"{self.artifact.kind} artifact {self.artifact.id[:12]}"

    def same_as(self, manifest: str) -> str | None:
        """Return None where a manifest is of this very artifact, else what it is of."""
        try:
            found = json.loads(manifest)
            return None if found["id"] == self.manifest else f"{found['kind']} artifact {found['id'][:12]}"
        except (ValueError, KeyError, TypeError):
            return f"a {MANIFEST} that is not LargeForge's"


def other_artifact(url: str, found: str, payload: Payload) -> StorageError:
    """Something else is finished there."""
    return StorageError(f"{url} holds another: {found}; this is {payload.told}.", next_step="choose another folder")


def other_content(url: str, name: str) -> StorageError:
    """A file of the same name is another."""
    return StorageError(
        f"{url} holds another {name}: an unfinished upload of something else, or not ours.", next_step="choose another folder, or delete it there"
    )


def strangers(url: str, names: Sequence[str]) -> StorageError:
    """Files that are not this folder's."""
    count = f"{len(names)} files that are" if len(names) > 1 else "a file that is"
    return StorageError(f"{url} holds {count} not of this folder ({', '.join(names[:3])}).", next_step="choose another folder, or delete them there")


def _file(path: Path) -> File:
    return File(path, path.stat().st_size, sha256_of(path))
