"""Fetched files, kept by the sha256 of their bytes, up to a size; the least recently used go first, never one that somebody uses.

    objects/<sha256>   the bytes, once, however many URLs lead to them
    index/<key>        URL and state of an object in a bucket -> sha256
    used/<sha256>      its time is that of the last use
    views/<id>/        hard links to objects under the names that a reader expects; <id>.json says to which
    leases/<id>/       one per process: what it uses, and what it is fetching; whose lock is free is dead

Several processes may use one cache. Knows nothing about buckets.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from largeforge.artifact import sha256_of, write_atomically

_leases: dict[tuple[Path, int], Lease] = {}


class Lease:
    """What this process uses; the operating system gives it back when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        (self.folder / "uses").mkdir(parents=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        atexit.register(self._give_back, os.getpid())

    def hold(self, digest: str) -> None:
        (self.folder / "uses" / digest).touch()

    def draft(self) -> Path:
        """A name for a file that is being fetched; it goes with the lease."""
        return self.folder / uuid.uuid4().hex

    def _give_back(self, owner: int) -> None:
        if os.getpid() == owner:
            shutil.rmtree(self.folder, ignore_errors=True)


class Cache:
    """A folder of fetched files.

    Args:
        folder: where; made at first use.
        limit_bytes: what its objects may take together; files in use stay even where that is more.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    @property
    def lease(self) -> Lease:
        """This process's own; a child that was forked gets its own."""
        at = (self.folder, os.getpid())
        if at not in _leases:
            for name in ("objects", "index", "used", "views", "leases", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            with self._locked():
                if at not in _leases:  # another thread may have been first
                    self._in_use()  # clears what dead processes left
                    _leases[at] = Lease(self.folder / "leases")
        return _leases[at]

    def draft(self) -> Path:
        """A name for a file that is being fetched."""
        return self.lease.draft()

    def find(self, key: str) -> str | None:
        """Return the hash of what was fetched under this key and hold it for this process; None where it is not there."""
        lease = self.lease
        with self._locked():
            try:
                digest = (self.folder / "index" / name_of(key)).read_text(encoding="utf-8")
            except FileNotFoundError:
                return None
            head, _, size = digest.partition(" ")
            path = self.folder / "objects" / head
            if not path.is_file() or path.stat().st_size != int(size):
                return None
            lease.hold(head)
            (self.folder / "used" / head).touch()
            return head

    def keep(self, draft: Path, key: str) -> str:
        """Take a fetched file in; return its hash. The draft is gone afterwards."""
        digest, size = sha256_of(draft), draft.stat().st_size
        lease = self.lease
        with self._locked():
            path = self.folder / "objects" / digest
            if path.is_file() and path.stat().st_size == size:
                draft.unlink()
            else:
                draft.chmod(0o444)  # a reader who writes into its view would change it for all
                os.replace(draft, path)
            lease.hold(digest)
            (self.folder / "used" / digest).touch()
            write_atomically(self.folder / "index" / name_of(key), f"{digest} {size}")
        return digest

    def forget(self, key: str) -> None:
        """Do not find this key again; the bytes stay for those who know them by another."""
        (self.folder / "index" / name_of(key)).unlink(missing_ok=True)

    def view(self, files: dict[str, str]) -> Path:
        """Return a folder that holds objects under names.

        Args:
            files: name below the folder -> hash; each is held by this process.
        """
        identity = name_of(json.dumps(sorted(files.items())))
        place = self.folder / "views" / identity
        with self._locked():
            if place.is_dir() and all(_same(place / name, self.folder / "objects" / digest) for name, digest in files.items()):
                return place
            shutil.rmtree(place, ignore_errors=True)
            draft = self.lease.draft()
            for name, digest in files.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                _link(self.folder / "objects" / digest, draft / name)
            write_atomically(place.with_suffix(".json"), json.dumps(sorted(set(files.values()))))
            os.replace(draft, place)
        return place

    def make_room(self, incoming_bytes: int) -> int:
        """Throw out the least recently used until so many bytes more fit; return by how many bytes they do not."""
        _ = self.lease
        with self._locked():
            sizes = {path.name: path.stat().st_size for path in (self.folder / "objects").iterdir()}
            over = sum(sizes.values()) + incoming_bytes - self.limit_bytes
            if over <= 0:
                return 0
            held = self._in_use()
            gone: set[str] = set()
            for digest in sorted(sizes.keys() - held, key=lambda digest: (self._last_use(digest), digest)):
                if over <= 0:
                    break
                gone.add(digest)
                over -= sizes[digest]
            self._drop(gone)
        return max(over, 0)

    @contextmanager
    def fetching(self, key: str) -> Iterator[None]:
        """Hold others off the same object, so that two processes do not fetch it twice."""
        _ = self.lease
        with _flock(self.folder / "locks" / name_of(key)[:2]):
            yield

    def _drop(self, digests: set[str]) -> None:
        if not digests:
            return
        for list_file in (self.folder / "views").glob("*.json"):
            if digests & set(json.loads(list_file.read_text(encoding="utf-8"))):
                shutil.rmtree(list_file.with_suffix(""), ignore_errors=True)
                list_file.unlink()
        for digest in digests:
            (self.folder / "objects" / digest).unlink()
            (self.folder / "used" / digest).unlink(missing_ok=True)
        for path in (self.folder / "index").iterdir():
            if path.read_text(encoding="utf-8").partition(" ")[0] in digests:
                path.unlink()

    def _last_use(self, digest: str) -> int:
        path = self.folder / "used" / digest
        return path.stat().st_mtime_ns if path.exists() else 0

    def _in_use(self) -> set[str]:
        held: set[str] = set()
        own = _leases.get((self.folder, os.getpid()))
        for folder in (self.folder / "leases").iterdir():
            if (own is None or folder != own.folder) and _is_free(folder / "lock"):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with suppress(FileNotFoundError):  # it ends right now
                    held.update(path.name for path in (folder / "uses").iterdir())
        return held

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _flock(self.folder / "lock"):
            yield


def name_of(key: str) -> str:
    """A file name for any text."""
    return hashlib.sha256(key.encode()).hexdigest()


@contextmanager
def _flock(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_free(path: Path) -> bool:
    """Whether nobody holds a lock; a lease without one is of a process that died as it made it."""
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_ino == other.stat().st_ino


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        target.symlink_to(source)
