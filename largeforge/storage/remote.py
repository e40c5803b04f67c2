"""Fetch from a bucket into the cache, put a folder into a bucket: the same for S3, Google and Azure.

A put sends the payload first and manifest.json last, so that a reader never takes half of a folder for an artifact; what stands
there already with the same content is not sent again. Knows nothing about protocols.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from largeforge.artifact import MANIFEST, sha256_of, user_cache
from largeforge.contract import Progress
from largeforge.errors import StorageError
from largeforge.storage.address import Address, below, parse, scheme_of
from largeforge.storage.bucket import Bucket, Entry
from largeforge.storage.cache import Cache
from largeforge.storage.payload import Payload, other_artifact, other_content, strangers

IN_FLIGHT = 8
ROUNDS = 3
Item = TypeVar("Item")


class Remote(ABC):
    """A storage of buckets.

    Args:
        cache_gib: what fetched files may take on this machine.
        progress: where long work is shown.
    """

    scheme: str

    def __init__(self, *, cache_gib: float, progress: Progress | None) -> None:
        self.cache = Cache(user_cache() / "storage", limit_bytes=int(cache_gib * 2**30))
        self.progress = progress
        self._buckets: dict[str, Bucket] = {}

    @abstractmethod
    def open(self, name: str) -> Bucket:
        """One bucket; nothing is asked of it yet."""

    def is_remote(self, path: str) -> bool:
        """Whether it is a URL."""
        return scheme_of(path) is not None

    def fetch(self, url: str) -> list[Path]:
        """Bring one object, all below a prefix, or all that match a pattern; return local files, read-only, in the order of their keys.

        All of one call stand in one folder under their names below the prefix. Objects that did not change are not fetched again.

        Raises:
            StorageError: nothing stands there, or it cannot be read.
            MissingExtra: the library for this kind of storage.
        """
        address = self._mine(url)
        bucket = self._bucket(address)
        digests: dict[Entry, str] = {}
        for _ in range(ROUNDS):
            entries = bucket.entries(address.key)
            # what was read under a state that is gone may have been of another: the listing after reading says which states were true
            for stale in digests.keys() - set(entries):
                self.cache.forget(_key(bucket, stale))
            missing = [entry for entry in entries if entry not in digests and not self._known(bucket, entry, digests)]
            if not missing:
                break
            self._bring(bucket, missing, digests, url)
        else:  # the objects were others at each listing
            raise StorageError(f"{url} changes while it is read.", next_step="wait until its writer is done, then run it again")
        names = {entry: below(address.base, entry.key, url) for entry in entries}
        folder = self.cache.view({names[entry]: digests[entry] for entry in entries})
        return [folder / names[entry] for entry in entries]

    def put(self, folder: Path, url: str) -> str:
        """Send a folder, its manifest.json last; return its URL.

        Of an artifact, the files that its manifest names are sent; of any other folder, all. A second put goes on where a first was
        interrupted.

        Raises:
            StorageError: something else stands there, or it cannot be written.
            ArtifactError: the folder's files are not what its manifest says.
        """
        address = self._mine(url)
        bucket = self._bucket(address)
        payload = Payload.of(folder)
        there = bucket.names(address.key)
        whole = self._stands(bucket, there, payload, address)
        extra = sorted(there.keys() - payload.files.keys())
        if extra and not whole:
            raise strangers(address.url, extra)
        self._send(bucket, address, self._to_send(bucket, there, payload, address, whole=whole), payload)
        if payload.manifest is not None and not whole:
            self._finish(bucket, address, payload)
        return address.url

    def names(self, url: str) -> list[str]:
        """Names of the objects below a folder; empty where nothing stands there.

        Raises:
            StorageError: the bucket cannot be read.
        """
        address = self._mine(url)
        return sorted(self._bucket(address).names(address.key))

    def remove(self, url: str) -> None:
        """Delete all objects below a folder, its manifest.json first.

        Raises:
            StorageError: they cannot be deleted, or the URL means a whole bucket.
        """
        address = self._mine(url)
        if not address.key:
            raise StorageError(f"{url} is a whole bucket: it is not deleted.", next_step=f"{url.rstrip('/')}/FOLDER")
        bucket = self._bucket(address)
        there = bucket.names(address.key)
        for name in sorted(there, key=lambda name: (name != MANIFEST, name)):
            bucket.remove(there[name])

    # ---- fetching ----

    def _known(self, bucket: Bucket, entry: Entry, digests: dict[Entry, str]) -> bool:
        digest = self.cache.find(_key(bucket, entry))
        if digest is not None:
            digests[entry] = digest
        return digest is not None

    def _bring(self, bucket: Bucket, entries: Sequence[Entry], digests: dict[Entry, str], url: str) -> None:
        over = self.cache.make_room(sum(entry.size_bytes for entry in entries))
        if over and self.progress is not None:
            self.progress.say(f"The cache {self.cache.folder} grows {over / 2**30:.2f} GiB above its limit: this run needs more at once (storage.cache_gib).")

        def one(entry: Entry, counter: Any) -> None:
            key = _key(bucket, entry)
            with self.cache.fetching(key):
                digest = self.cache.find(key)
                if digest is None:  # nobody was quicker
                    draft = self.cache.draft()
                    try:
                        bucket.fetch(entry, draft, callback=counter)
                        if draft.stat().st_size != entry.size_bytes:
                            return  # changed since it was listed: the next round sees it
                        digest = self.cache.keep(draft, key)
                    finally:
                        draft.unlink(missing_ok=True)
                digests[entry] = digest

        self._together(f"Fetching {url}", entries, one, num_bytes=sum(entry.size_bytes for entry in entries))

    # ---- putting ----

    def _stands(self, bucket: Bucket, there: dict[str, Entry], payload: Payload, address: Address) -> bool:
        """Whether this very artifact stands there with its manifest; another one is refused."""
        if MANIFEST not in there or payload.manifest is None:
            return False
        found = payload.same_as(self._text(bucket, there[MANIFEST]))
        if found is not None:
            raise other_artifact(address.url, found, payload)
        return True

    def _to_send(self, bucket: Bucket, there: dict[str, Entry], payload: Payload, address: Address, *, whole: bool) -> list[str]:
        """The names that are missing there or may be replaced; raises where other content stands."""
        wanted: list[str] = []
        known = {name: self._digest(bucket, entry, payload.files[name].size_bytes) for name, entry in there.items() if name in payload.files}
        for name, file in payload.files.items():
            if name == MANIFEST and payload.manifest is not None:
                continue
            if name not in known:
                wanted.append(name)
            elif known[name] != file.sha256:
                if name in payload.outside_id and whole and name in payload.sealed:
                    continue  # told of there as the first who put it saw it; the manifest there names those bytes
                if not whole and name not in payload.outside_id:
                    raise other_content(address.url, name)
                wanted.append(name)
        return wanted

    def _digest(self, bucket: Bucket, entry: Entry, size_bytes: int) -> str | None:
        """The sha256 of an object; None where its size alone tells it apart."""
        if entry.size_bytes != size_bytes:
            return None
        with bucket.told("read", bucket.url(entry.key)):
            carried = bucket.patiently(lambda: bucket.digest(entry))
        if carried is not None:
            return carried
        draft = self.cache.draft()  # put by somebody else's tool: its bytes say what it is
        try:
            bucket.fetch(entry, draft)
            return sha256_of(draft)
        finally:
            draft.unlink(missing_ok=True)

    def _send(self, bucket: Bucket, address: Address, names: Sequence[str], payload: Payload) -> None:
        if not names:
            return

        def one(name: str, counter: Any) -> None:
            file = payload.files[name]
            bucket.put(file.path, _join(address.key, name), digest=file.sha256, callback=counter)

        self._together(f"Sending to {address.url}", names, one, num_bytes=sum(payload.files[name].size_bytes for name in names))

    def _finish(self, bucket: Bucket, address: Address, payload: Payload) -> None:
        """Send the manifest, once all that it names stands there."""
        there = bucket.names(address.key)
        lost = [name for name, file in payload.files.items() if name != MANIFEST and (name not in there or there[name].size_bytes != file.size_bytes)]
        if lost:
            raise StorageError(f"{address.url} lost {', '.join(lost[:3])} while it was written.", next_step="see who else writes there, then run it again")
        manifest = payload.files[MANIFEST]
        key = _join(address.key, MANIFEST)
        if not bucket.put(manifest.path, key, digest=manifest.sha256, create=True):  # somebody else finished first
            self._stands(bucket, bucket.names(address.key), payload, address)

    def _text(self, bucket: Bucket, entry: Entry) -> str:
        draft = self.cache.draft()
        try:
            bucket.fetch(entry, draft)
            return draft.read_text(encoding="utf-8", errors="replace")
        finally:
            draft.unlink(missing_ok=True)

    # ---- both ----

    def _mine(self, url: str) -> Address:
        address = parse(url)
        if address.scheme != self.scheme:
            raise StorageError(f"{url} is not {self.scheme}://, the only one that storage={self.scheme} reaches.", next_step="storage=auto, which reaches all")
        return address

    def _bucket(self, address: Address) -> Bucket:
        if address.bucket not in self._buckets:
            self._buckets[address.bucket] = self.open(address.bucket)
        return self._buckets[address.bucket]

    def _together(self, title: str, items: Sequence[Item], work: Callable[[Item, Any], None], *, num_bytes: int) -> None:
        """Do the work of several items at once, and show it; the first error ends all."""
        counter = _counter()
        bar = self.progress.bar(title, total=len(items), unit="files") if self.progress is not None else None
        pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="storage")
        try:
            open_jobs = {pool.submit(work, item, counter()) for item in items}
            told = time.monotonic()
            while open_jobs:
                done, open_jobs = wait(open_jobs, timeout=0.2, return_when=FIRST_COMPLETED)
                for job in done:
                    job.result()
                if bar is not None and (done or time.monotonic() - told > 1):
                    told = time.monotonic()
                    bar.advance(len(done), MB=f"{counter.moved / 1e6:,.1f} of {num_bytes / 1e6:,.1f}")
        finally:
            counter.stopped = True  # what is still moving after an error ends at its next block
            pool.shutdown(wait=True, cancel_futures=True)
            if bar is not None:
                bar.close()


def _counter() -> Any:
    """A maker of fsspec callbacks that add up what all of them moved."""
    from fsspec.callbacks import Callback

    class Counter:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.moved = 0
            self.stopped = False

        def __call__(self) -> Any:
            outer = self

            class One(Callback):  # type: ignore[misc]  # fsspec ships no types
                moved = 0

                def absolute_update(self, value: int) -> None:
                    if outer.stopped:
                        raise StorageError("Stopped.")
                    with outer.lock:
                        outer.moved += value - self.moved
                    self.moved = value

                def relative_update(self, inc: int = 1) -> None:
                    self.absolute_update(self.moved + inc)

            return One()

    return Counter()


def _key(bucket: Bucket, entry: Entry) -> str:
    return "\n".join((bucket.scheme, bucket.endpoint, bucket.name, entry.key, entry.state))


def _join(key: str, name: str) -> str:
    return f"{key}/{name}" if key else name
