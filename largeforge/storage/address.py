"""URLs of buckets taken apart, and the names that objects get below a folder. Opens nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from largeforge.errors import StorageError

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "file": "file"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Address:
    """A place in a bucket.

    Args:
        scheme: "s3", "gs" or "az".
        bucket: bucket or container.
        key: below it, without slashes at either end; may be empty or hold `*`, `?` and `[...]`.
    """

    scheme: str
    bucket: str
    key: str

    @property
    def url(self) -> str:
        """As a user would type it."""
        return f"{self.scheme}://{self.path}"

    @property
    def path(self) -> str:
        """Bucket and key, as fsspec wants them."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    @property
    def base(self) -> str:
        """The longest beginning of the key, in whole parts, that holds no wildcard."""
        parts = self.key.split("/")
        plain = next((number for number, part in enumerate(parts) if MAGIC.search(part)), len(parts))
        return "/".join(parts[:plain])


def scheme_of(path: str) -> str | None:
    """Return what stands before `://`; None for a plain path."""
    match = _URL.fullmatch(path)
    return match[1].lower() if match else None


def parse(url: str) -> Address:
    """Take a bucket's URL apart.

    Raises:
        StorageError: a scheme that no storage speaks, no bucket, or credentials inside; these are not repeated.
    """
    match = _URL.fullmatch(url)
    scheme = SCHEMES.get(match[1].lower()) if match else None
    if match is None or scheme is None or scheme == "file":
        raise unknown(url)
    bucket, _, key = match[2].partition("/")
    if "@" in bucket:
        raise StorageError(f"A {scheme}:// URL holds no account and no credentials.", next_step=f"{scheme}://BUCKET/FOLDER, and the rest in the environment")
    if not bucket or MAGIC.search(bucket):
        raise StorageError(f"{url} names no bucket.", next_step=f"{scheme}://BUCKET/FOLDER")
    return Address(scheme, bucket, re.sub(r"^/+|/+$", "", key))


def unknown(url: str) -> StorageError:
    """The error for a scheme that no storage speaks."""
    scheme = scheme_of(url)
    said = f"no storage speaks {scheme}://" if scheme else "it is no URL"
    return StorageError(f"{url}: {said} (there are s3://, gs://, az:// and file://).", next_step="one of these, or a path of this machine")


def below(base: str, key: str, url: str) -> str:
    """Return the name that an object gets below a local folder.

    Args:
        base: the key of the folder that is fetched; where it is the object itself, its last part is the name.
        key: the object's key.
        url: what was asked for, for the error.

    Raises:
        StorageError: a name that would leave the folder.
    """
    name = key[len(base) :].removeprefix("/") if base and key != base else key if not base else PurePosixPath(key).name
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "\0" in name:
        raise StorageError(f"{url} holds the object {key!r}, whose name cannot be a file's.", next_step="rename that object, or fetch the others by a pattern")
    return name
