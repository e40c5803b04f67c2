"""Models made once into the user's cache: whole or not at all, verified at every load, safe for two processes at once.

Knows nothing about how they are made.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from largeforge.artifact import Artifact, is_artifact, read_artifact, write_artifact
from largeforge.contract import Reference
from largeforge.errors import ModelError


def made_once(folder: Path, *, fill: Callable[[Path], str], config: dict[str, Any], parents: Sequence[Reference]) -> Artifact:
    """Return the artifact in `folder`, made by `fill` if it is not there yet.

    Two processes may make it at the same time: each writes a draft of its own, the first rename wins, the other's draft
    is dropped. Raises ModelError where the disk is full or the cache cannot be written, ArtifactError where a file was altered.
    """
    if not is_artifact(folder):
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            shutil.rmtree(draft, ignore_errors=True)  # what a killed process with this id left
            write_artifact(folder, fill=fill, parents=parents, config=config)
        except OSError as fault:
            shutil.rmtree(draft, ignore_errors=True)
            if not is_artifact(folder):
                raise _unwritten(folder, fault) from fault
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            if not is_artifact(folder):
                raise
    return read_artifact(folder, kind="model")


def _unwritten(folder: Path, fault: OSError) -> ModelError:
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(f"The disk is full: {folder} could not be written.", next_step="free about 400 MB, or LARGEFORGE_CACHE=<a folder on another disk>")
    return ModelError(f"{folder} could not be written: {fault}.", next_step="LARGEFORGE_CACHE=<a folder you may write to>")
