"""Google Cloud Storage, through gcsfs. Credentials come from where Google's own tools look for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from largeforge.contract import Progress
from largeforge.errors import MissingExtra
from largeforge.storage.bucket import DIGEST, Bucket, Entry
from largeforge.storage.config import GSConfig
from largeforge.storage.remote import Remote

PART_BYTES = 16 << 20  # what each file that is sent holds in memory


class GS(Remote):
    """`gs://bucket/folder`."""

    scheme = "gs"

    def __init__(self, config: GSConfig, *, progress: Progress | None = None) -> None:
        super().__init__(cache_gib=config.cache_gib, progress=progress)
        self.config = config

    def open(self, name: str) -> GSBucket:
        return GSBucket(name, self.config)


class GSBucket(Bucket):
    """One bucket of Google Cloud Storage."""

    scheme = "gs"
    login = "GOOGLE_APPLICATION_CREDENTIALS=<key file>, `gcloud auth application-default login`, or storage=gs storage.anonymous=true for a public bucket"

    def __init__(self, name: str, config: GSConfig) -> None:
        address = config.endpoint or os.environ.get("STORAGE_EMULATOR_HOST") or ""
        super().__init__(name, endpoint=address if not address or "://" in address else f"http://{address}")
        self.config = config

    def connect(self) -> Any:
        try:
            from gcsfs.core import GCSFileSystem  # the package's own name is one that asks a second API of Google's what kind of bucket it is
        except ImportError as fault:
            raise MissingExtra("gcsfs", extra="storage") from fault
        # an emulator knows nobody, and without a token gcsfs would ask the metadata server of a machine at Google first
        emulated = self.endpoint.startswith("http://") and not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        return GCSFileSystem(
            project=self.config.project or os.environ.get("GOOGLE_CLOUD_PROJECT", ""),
            token="anon" if self.config.anonymous or emulated else None,
            endpoint_url=self.endpoint or None,
            consistency="md5",
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def send(self, local: Path, key: str, *, digest: str, create: bool, callback: Any) -> None:
        mode = "create" if create else "overwrite"
        self.fs.put_file(str(local), f"{self.name}/{key}", callback=callback, mode=mode, chunksize=PART_BYTES, metadata={DIGEST: digest})

    def digest(self, entry: Entry) -> str | None:
        value = (self.fs.info(f"{self.name}/{entry.key}").get("metadata") or {}).get(DIGEST)
        return None if value is None else str(value)
