"""Files of this machine: a fetch finds them, a put copies a folder, its manifest.json last. A URL is refused."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from largeforge.artifact import MANIFEST, sha256_of
from largeforge.contract import Progress
from largeforge.errors import StorageError
from largeforge.storage.address import MAGIC, scheme_of
from largeforge.storage.config import StorageConfig
from largeforge.storage.payload import Payload, other_artifact, other_content, strangers


class Local:
    """Plain paths and file:// URLs."""

    def __init__(self, config: StorageConfig, *, progress: Progress | None = None) -> None:
        self.config = config
        self.progress = progress

    def is_remote(self, path: str) -> bool:
        """Whether it is a URL, which `fetch` turns into files or refuses."""
        return scheme_of(path) is not None

    def fetch(self, url: str) -> list[Path]:
        """Return the files that a path means: one, all below a folder, or all that match a pattern; nothing is copied.

        Raises:
            StorageError: nothing stands there, or it is a bucket's URL.
        """
        path = place_of(url)
        if path.is_file():
            return [path]
        if path.is_dir():
            found = sorted(inner for inner in path.rglob("*") if inner.is_file())
        else:
            found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()) if MAGIC.search(str(path)) else []
        if not found:
            raise StorageError(f"Nothing stands at {path}.", next_step="check the spelling; a file, a folder, or a pattern such as *.jsonl")
        return found

    def put(self, folder: Path, url: str) -> str:
        """Copy a folder, its manifest.json last; return where it stands. A second put goes on where a first was interrupted.

        Raises:
            StorageError: something else stands there, or it cannot be written.
            ArtifactError: the folder's files are not what its manifest says.
        """
        place = place_of(url)
        payload = Payload.of(folder)
        if place.exists() and not place.is_dir():
            raise StorageError(f"{place} is a file.", next_step="choose a folder that is empty or not there")
        there = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()} if place.is_dir() else {}
        whole = MANIFEST in there and payload.manifest is not None
        if whole:
            found = payload.same_as(there[MANIFEST].read_text(encoding="utf-8", errors="replace"))
            if found is not None:
                raise other_artifact(str(place), found, payload)
        extra = sorted(name for name in there.keys() - payload.files.keys() if not _is_draft(name))
        if extra and not whole:
            raise strangers(str(place), extra)
        try:
            self._copy(place, payload, there, whole=whole)
        except OSError as fault:
            raise StorageError(f"{place} cannot be written: {fault}.", next_step="choose another folder, or free some disk") from fault
        return str(place)

    def names(self, url: str) -> list[str]:
        """Names of the files below a folder; empty where nothing stands there."""
        place = place_of(url)
        found = (path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
        return sorted(name for name in found if not _is_draft(name))

    def remove(self, url: str) -> None:
        """Delete a folder, its manifest.json first."""
        place = place_of(url)
        try:
            (place / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(place)
        except FileNotFoundError:
            return
        except OSError as fault:
            raise StorageError(f"{place} cannot be deleted: {fault}.", next_step="delete it by hand") from fault

    def _copy(self, place: Path, payload: Payload, there: dict[str, Path], *, whole: bool) -> None:
        names = sorted(payload.files, key=lambda name: (name == MANIFEST, name))
        bar = self.progress.bar(f"Copying to {place}", total=len(names), unit="files") if self.progress is not None else None
        try:
            for name in names:
                same = name in there and sha256_of(there[name]) == payload.files[name].sha256
                kept = whole and (name == MANIFEST or (name in payload.outside_id and name in payload.sealed and name in there))
                if not same and not kept:
                    if name in there and not whole and name not in payload.outside_id:
                        raise other_content(str(place), name)
                    _copy_whole(payload.files[name].path, place / name)
                if bar is not None:
                    bar.advance()
        finally:
            if bar is not None:
                bar.close()


def place_of(path: str) -> Path:
    """Return the local path that a plain path or a file:// URL names.

    Raises:
        StorageError: another scheme.
    """
    scheme = scheme_of(path)
    if scheme is None:
        return Path(path).expanduser()
    if scheme == "file":
        parts = urlsplit(path)
        if parts.netloc in ("", "localhost"):
            return Path(unquote(parts.path))
        raise StorageError(f"{path} names another machine.", next_step="file:///PATH, with three slashes")
    raise StorageError(f"{path} is a URL, and storage=local reaches only this machine's files.", next_step="storage=auto, which reaches s3://, gs:// and az://")


def _copy_whole(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, draft)
        with draft.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _is_draft(name: str) -> bool:
    """A file that a killed put left half: its name says so, and no reader looks at it."""
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(".part")
