"""Models made once into the user's cache: whole or not at all, verified at every load, safe for several processes at once.

Knows nothing about how they are made.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from largeforge.artifact import Artifact, is_artifact, read_artifact, write_artifact
from largeforge.contract import Reference
from largeforge.errors import ModelError


def made_once(folder: Path, *, fill: Callable[[Path], str], config: dict[str, Any], parents: Sequence[Reference]) -> Artifact:
    """Return the artifact in `folder`, made by `fill` if it is not there yet.

    Of several processes one makes it and the others wait. Raises ModelError where the disk is full or the cache cannot be
    written, ArtifactError where a file was altered since.
    """
    if not is_artifact(folder):
        try:
            with _alone(folder):
                if not is_artifact(folder):
                    write_artifact(folder, fill=fill, parents=parents, config=config)
        except OSError as fault:
            raise _unwritten(folder, fault) from fault
    return read_artifact(folder, kind="model")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` while the block runs; drafts that killed processes left are removed first, and what the block leaves half done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel gives it back when the process ends, however it ends
        _clear_drafts(folder)
        try:
            yield
        finally:
            _clear_drafts(folder)


def _clear_drafts(folder: Path) -> None:
    for draft in folder.parent.glob(f".{folder.name}.*"):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)


def _unwritten(folder: Path, fault: OSError) -> ModelError:
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(f"The disk is full: {folder} could not be written.", next_step="free about 600 MB, or LARGEFORGE_CACHE=<a folder on another disk>")
    return ModelError(f"{folder} could not be written: {fault}.", next_step="LARGEFORGE_CACHE=<a folder you may write to>")
