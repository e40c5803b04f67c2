"""Copies of checkpoints in a folder elsewhere, sent while training goes on, one at a time. Knows nothing about what a checkpoint holds."""

from __future__ import annotations

import threading
from pathlib import Path

from largeforge.contract import Storage
from largeforge.errors import InputError, LargeForgeError, StorageError
from largeforge.run import Run


class Copies:
    """The remote side of `trainer.checkpoint.folder`.

    Args:
        run: where trouble is told.
        storage: how the folder is reached.
        folder: s3://..., gs://..., az://... or a path.

    Raises:
        StorageError: the folder cannot be listed.
    """

    def __init__(self, run: Run, *, storage: Storage, folder: str) -> None:
        self.run = run
        self.storage = storage
        self.folder = folder.rstrip("/")
        self.names = steps_in(storage, self.folder)
        self.missing: set[str] = set()
        """Those that could not be sent."""
        self._thread: threading.Thread | None = None
        self._trouble = ""

    def send(self, path: Path) -> None:
        """Start sending a checkpoint; waits for the one before it."""
        self.finish()
        self._thread = threading.Thread(target=self._send, args=(path,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until nothing is under way; what failed is told, and training goes on: the checkpoint stands on this machine."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._trouble:
            self.run.progress.say(f"A checkpoint could not be copied to {self.folder}; it stands on this machine. {self._trouble}")
            self._trouble = ""

    def remove(self, name: str) -> None:
        """Delete one copy; called when nothing is under way."""
        if name in self.names:
            try:
                self.storage.remove(f"{self.folder}/{name}")
            except StorageError as error:
                self.run.progress.say(f"A copy that is not to be kept stays in {self.folder}: {error.message}")
            self.names.discard(name)
        self.missing.discard(name)

    def _send(self, path: Path) -> None:
        try:
            self.storage.put(path, f"{self.folder}/{path.name}")
            self.names.add(path.name)
        except LargeForgeError as error:
            self.missing.add(path.name)
            self._trouble = error.message
        except Exception as fault:
            self.missing.add(path.name)
            self._trouble = f"{type(fault).__name__}: {fault}"


def open_copies(run: Run, *, storage: Storage | None, folder: str | None) -> Copies | None:
    """The copies of a run; None where none are kept.

    Raises:
        InputError: a run starts, and the folder holds checkpoints of another.
        StorageError: the folder cannot be listed.
    """
    if folder is None or storage is None:
        return None
    copies = Copies(run, storage=storage, folder=folder)
    if copies.names and run.config.resume == "never":
        raise InputError(
            f"trainer.checkpoint.folder={folder} holds checkpoints of a run already ({max(copies.names)}).",
            next_step=f"another folder there, or resume={folder} to go on with that run",
        )
    return copies


def steps_in(storage: Storage, folder: str) -> set[str]:
    """Names of the whole checkpoints in a folder elsewhere."""
    return {name.partition("/")[0] for name in storage.names(folder) if name.startswith("step=") and name.endswith("/manifest.json")}
