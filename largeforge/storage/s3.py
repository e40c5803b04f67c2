"""Amazon S3 and whatever speaks its protocol, through s3fs. Credentials come from where Amazon's own tools look for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from largeforge.contract import Progress
from largeforge.errors import MissingExtra
from largeforge.storage.bucket import DIGEST, Bucket, Entry
from largeforge.storage.config import S3Config
from largeforge.storage.remote import Remote

PART_BYTES = 16 << 20  # with PARTS_AT_ONCE and the files that go at once, what transfers hold in memory
PARTS_AT_ONCE = 4


class S3(Remote):
    """`s3://bucket/folder`."""

    scheme = "s3"

    def __init__(self, config: S3Config, *, progress: Progress | None = None) -> None:
        super().__init__(cache_gib=config.cache_gib, progress=progress)
        self.config = config

    def open(self, name: str) -> S3Bucket:
        return S3Bucket(name, self.config)


class S3Bucket(Bucket):
    """One bucket of S3."""

    scheme = "s3"
    login = "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..., `aws configure`, or storage=s3 storage.anonymous=true for a public bucket"

    def __init__(self, name: str, config: S3Config) -> None:
        super().__init__(name, endpoint=config.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        self.config = config

    def connect(self) -> Any:
        try:
            import s3fs
        except ImportError as fault:
            raise MissingExtra("s3fs", extra="storage") from fault
        fs = s3fs.S3FileSystem(
            anon=self.config.anonymous,
            endpoint_url=self.endpoint or None,
            client_kwargs={"region_name": self.config.region} if self.config.region else {},
            # tried again is in one place, Bucket.patiently: three layers that each try five times would take minutes
            config_kwargs={"retries": {"total_max_attempts": 1, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 60},
            default_block_size=PART_BYTES,
            max_concurrency=PARTS_AT_ONCE,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        fs.retries = 1
        return fs

    def send(self, local: Path, key: str, *, digest: str, create: bool, callback: Any) -> None:
        # s3fs aborts a multipart upload that fails; S3 takes at most 10,000 parts
        part = max(PART_BYTES, -(-local.stat().st_size // 10_000))
        mode = "create" if create else "overwrite"
        self.fs.put_file(str(local), f"{self.name}/{key}", callback=callback, mode=mode, chunksize=part, Metadata={DIGEST: digest})

    def digest(self, entry: Entry) -> str | None:
        value = self.fs.metadata(f"{self.name}/{entry.key}").get(DIGEST)
        return None if value is None else str(value)
