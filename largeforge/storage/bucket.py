"""One bucket through fsspec: what stands there, one object down, one object up; every fault told with its mend.

Knows nothing about artifacts or the cache. An object is sent whole or not at all: all three protocols show it only when it is complete.
"""

from __future__ import annotations

import random
import socket
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from largeforge.errors import LargeForgeError, StorageError
from largeforge.storage.address import MAGIC, Address
from largeforge.storage.faults import kind_of, said

DIGEST = "sha256"  # the name under which an object that was put carries the hash of its content
ATTEMPTS = 5
PAUSE_S = 0.25  # before the second attempt; twice as long before each further one
KNOCKS = 3
CONNECT_TIMEOUT_S = 5.0
Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """One object as a listing tells it.

    Args:
        key: below the bucket.
        size_bytes: of its content.
        state: changes whenever the content does: etag, generation, time; compared, never read.
    """

    key: str
    size_bytes: int
    state: str


class Bucket(ABC):
    """A bucket or container.

    Args:
        name: of the bucket.
        endpoint: the server's URL where it is not the provider's own; what the cache tells stores apart by.
    """

    scheme: str
    login: str  # what mends missing or wrong credentials

    def __init__(self, name: str, *, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self._fs: Any = None

    # ---- what each protocol does in its own way ----

    @abstractmethod
    def connect(self) -> Any:
        """Make the fsspec file system; imports its library. Raises MissingExtra."""

    @abstractmethod
    def send(self, local: Path, key: str, *, digest: str, create: bool, callback: Any) -> None:
        """Send one object with its digest as metadata; `create` raises FileExistsError where one stands already."""

    @abstractmethod
    def digest(self, entry: Entry) -> str | None:
        """Return the sha256 that the object carries; None where it was not put by LargeForge."""

    # ---- the same for all ----

    @property
    def fs(self) -> Any:
        """The file system, connected at first use."""
        if self._fs is None:
            if self.endpoint:
                self._knock()
            self._fs = self.connect()
        return self._fs

    def entries(self, key: str) -> list[Entry]:
        """Return the objects that a key means: the one of that name, all below it, or all that match its wildcards; by key.

        Raises:
            StorageError: nothing stands there, or it cannot be read.
        """
        url = Address(self.scheme, self.name, key).url
        with self.told("read", url):
            found = self.patiently(lambda: self._found(key))
            if not found:
                self.patiently(lambda: self.fs.ls(self.name))  # a bucket that is not there is told as such
                raise StorageError(
                    f"Nothing stands at {url}{self._beside(key)}.", next_step="check the spelling; a folder, an object, or a pattern such as *.jsonl"
                )
        return found

    def names(self, key: str) -> dict[str, Entry]:
        """Return the objects below a key, by their names there; empty where nothing is."""
        prefix = f"{key}/" if key else ""
        with self.told("read", Address(self.scheme, self.name, key).url):
            found = self.patiently(lambda: self._below(key))
            if not found:
                self.patiently(lambda: self.fs.ls(self.name))
        return {entry.key[len(prefix) :]: entry for entry in found if entry.key.startswith(prefix)}

    def fetch(self, entry: Entry, local: Path, *, callback: Any = None) -> None:
        """Write one object's content to a file; what stands there after an error is to be thrown away."""
        with self.told("read", self.url(entry.key)):
            self.patiently(lambda: self.fs.get_file(f"{self.name}/{entry.key}", str(local), callback=_callback(callback)))

    def put(self, local: Path, key: str, *, digest: str, create: bool = False, callback: Any = None) -> bool:
        """Send one object; False where `create` found one there already."""
        with self.told("write", self.url(key)):
            try:
                self.patiently(lambda: self.send(local, key, digest=digest, create=create, callback=_callback(callback)))
            except Exception as fault:
                if create and kind_of(fault) == "exists":
                    return False
                raise
        return True

    def remove(self, entry: Entry) -> None:
        """Delete one object; one that is gone already is as well."""
        with self.told("write", self.url(entry.key)):
            try:
                self.patiently(lambda: self.fs.rm(f"{self.name}/{entry.key}"))
            except FileNotFoundError:
                return

    def url(self, key: str) -> str:
        """The URL of an object."""
        return Address(self.scheme, self.name, key).url

    def patiently(self, ask: Callable[[], Value]) -> Value:
        """Ask again after what passes by itself: a broken line, a server that is busy."""
        for attempt in range(1, ATTEMPTS):
            try:
                return ask()
            except LargeForgeError:
                raise
            except Exception as fault:
                if kind_of(fault) != "passing":
                    raise
                time.sleep(PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # many at once come back at different times
        return ask()

    @contextmanager
    def told(self, doing: str, url: str) -> Iterator[None]:
        """Turn whatever a storage library raises into a StorageError that says what to do."""
        try:
            yield
        except LargeForgeError:
            raise
        except Exception as fault:
            raise self._error(fault, doing, url) from fault

    def _error(self, fault: Exception, doing: str, url: str) -> StorageError:
        kind, what, at = kind_of(fault), said(fault), f" at {self.endpoint}" if self.endpoint else ""
        if kind == "missing":
            return StorageError(
                f"{url} cannot be {_done(doing)}: there is no {self.word} {self.name}{at}, or nothing of that name in it.", next_step=self.make()
            )
        if kind == "credentials":
            return StorageError(f"{url} cannot be {_done(doing)}: no valid credentials for {self.scheme}://{at} ({what}).", next_step=self.login)
        if kind == "denied":
            mend = f"ask for the right to {doing} it, or use other credentials: {self.login}"
            return StorageError(f"{url} cannot be {_done(doing)}: access is denied{at} ({what}).", next_step=mend)
        if kind == "unreachable":
            return self._unreachable(what, url)
        if kind == "passing":
            mend = "run it again: what has arrived is not sent or fetched twice"
            return StorageError(f"{url} cannot be {_done(doing)}: the server{at} failed again and again ({what}).", next_step=mend)
        return StorageError(
            f"{url} cannot be {_done(doing)}{at} ({type(fault).__name__}: {what}).", next_step="run it again; if it stays, check the storage's own log"
        )

    word = "bucket"

    def make(self) -> str:
        """What to do about a bucket that is not there."""
        return f"check the spelling, or make the {self.word} {self.name} first"

    def _unreachable(self, what: str, url: str) -> StorageError:
        at = f"at {self.endpoint}" if self.endpoint else f"of {self.scheme}://"
        return StorageError(f"{url}: the storage {at} is not in reach ({what}).", next_step="check the network (HTTPS_PROXY) and storage.endpoint")

    def _knock(self) -> None:
        """See whether the endpoint listens: the libraries would try for half a minute before they say so."""
        parts = urlsplit(self.endpoint)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
            return
        for attempt in range(1, KNOCKS + 1):
            try:
                socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
                return
            except OSError as fault:
                if attempt == KNOCKS:
                    raise self._unreachable(said(fault), f"{self.scheme}://{self.name}") from fault
                time.sleep(PAUSE_S)

    def _found(self, key: str) -> list[Entry]:
        self.fs.invalidate_cache()
        if MAGIC.search(key):
            return self._sorted(self.fs.glob(f"{self.name}/{key}", detail=True))
        if key:
            try:
                info = self.fs.info(f"{self.name}/{key}")
            except FileNotFoundError:
                return []
            if info["type"] == "file" and not str(info["name"]).endswith("/"):
                return [self._entry(info)]
        return self._below(key)

    def _below(self, key: str) -> list[Entry]:
        self.fs.invalidate_cache()
        path = f"{self.name}/{key}" if key else self.name
        return self._sorted(self.fs.find(path, detail=True))

    def _sorted(self, infos: dict[str, dict[str, Any]]) -> list[Entry]:
        files = (info for info in infos.values() if info["type"] == "file" and not str(info["name"]).endswith("/"))
        return sorted((self._entry(info) for info in files), key=lambda entry: entry.key)

    def _entry(self, info: dict[str, Any]) -> Entry:
        key = str(info["name"])[len(self.name) + 1 :]
        tags = [str(info.get(name)).strip('"') for name in ("ETag", "etag", "generation", "VersionId") if info.get(name)]
        when = [] if tags else [str(info.get(name)) for name in ("LastModified", "last_modified", "updated", "mtime") if info.get(name)]
        return Entry(key, int(info["size"]), " ".join([str(info["size"]), *tags, *when]))

    def _beside(self, key: str) -> str:
        """What stands in the same folder, for somebody who mistyped."""
        parent = Address(self.scheme, self.name, key).base
        parent = parent if MAGIC.search(key) else parent.rpartition("/")[0]
        try:
            names = sorted(str(name).rstrip("/").rpartition("/")[2] for name in self.fs.ls(f"{self.name}/{parent}".rstrip("/"), detail=False))
        except FileNotFoundError:
            return ""
        return f"; in this folder: {', '.join(names[:5])}" if names else ""


def _done(doing: str) -> str:
    return {"read": "read", "write": "written"}[doing]


def _callback(callback: Any) -> Any:
    from fsspec.callbacks import DEFAULT_CALLBACK

    return callback or DEFAULT_CALLBACK
