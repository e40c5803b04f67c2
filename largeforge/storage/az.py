"""Azure Blob Storage, through adlfs. Credentials come from where adlfs and Azure's own tools look for them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from largeforge.contract import Progress
from largeforge.errors import MissingExtra, StorageError
from largeforge.storage.bucket import DIGEST, Bucket, Entry
from largeforge.storage.config import AZConfig
from largeforge.storage.remote import Remote


class AZ(Remote):
    """`az://container/folder`."""

    scheme = "az"

    def __init__(self, config: AZConfig, *, progress: Progress | None = None) -> None:
        super().__init__(cache_gib=config.cache_gib, progress=progress)
        self.config = config

    def open(self, name: str) -> AZBucket:
        return AZBucket(name, self.config)


class AZBucket(Bucket):
    """One container of a storage account."""

    scheme = "az"
    word = "container"
    login = (
        "AZURE_STORAGE_ACCOUNT_NAME=... with AZURE_STORAGE_ACCOUNT_KEY=..., AZURE_STORAGE_SAS_TOKEN=... or `az login`; or AZURE_STORAGE_CONNECTION_STRING=...; "
        "or storage=az storage.account=... storage.anonymous=true for a public container"
    )

    def __init__(self, name: str, config: AZConfig) -> None:
        self.config = config
        self.account = config.account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or ""
        super().__init__(name, endpoint=config.endpoint or _named(os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""), "BlobEndpoint"))

    def connect(self) -> Any:
        try:
            import adlfs
        except ImportError as fault:
            raise MissingExtra("adlfs", extra="storage") from fault
        if not self.account and not os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
            raise StorageError(f"az://{self.name} does not say in which storage account it lies.", next_step=f"storage=az storage.account=..., or {self.login}")
        try:
            return adlfs.AzureBlobFileSystem(use_listings_cache=False, skip_instance_cache=True, **self._arguments())
        except ValueError as fault:
            raise self._error(fault, "read", f"az://{self.name}") from fault

    def _arguments(self) -> dict[str, Any]:
        if self.config.anonymous:
            if self.config.endpoint and not self.config.endpoint.startswith("https://"):
                return {"connection_string": f"BlobEndpoint={self.config.endpoint};SharedAccessSignature="}
            host = urlsplit(self.config.endpoint).netloc + urlsplit(self.config.endpoint).path if self.config.endpoint else None
            return {"account_name": self.account, "account_host": host, "anon": True}
        if self.config.endpoint is None:
            return {"account_name": self.account or None, "anon": False}
        # adlfs takes another server only in this form; the key comes from the environment and goes nowhere else
        key, sas = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"), os.environ.get("AZURE_STORAGE_SAS_TOKEN")
        key = key or _named(os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""), "AccountKey")
        secret = f"AccountKey={key}" if key else f"SharedAccessSignature={sas.lstrip('?')}" if sas else ""
        if not secret:
            raise StorageError(f"storage.endpoint = {self.config.endpoint}: no credentials in the environment.", next_step=self.login)
        return {"connection_string": f"BlobEndpoint={self.config.endpoint};AccountName={self.account};{secret}", "anon": False}

    def send(self, local: Path, key: str, *, digest: str, create: bool, callback: Any) -> None:
        from fsspec.asyn import sync

        # adlfs' own put_file takes no metadata
        sync(self.fs.loop, self._send, local, key, digest=digest, create=create, callback=callback)

    async def _send(self, local: Path, key: str, *, digest: str, create: bool, callback: Any) -> None:
        from azure.core.exceptions import ResourceExistsError

        async def hook(sent: int, total: int | None) -> None:
            callback.absolute_update(sent)

        async with self.fs.service_client.get_blob_client(self.name, key) as blob:
            with local.open("rb") as stream:
                try:
                    await blob.upload_blob(stream, overwrite=not create, metadata={DIGEST: digest}, progress_hook=hook, max_concurrency=4)
                except ResourceExistsError as fault:
                    raise FileExistsError(key) from fault

    def digest(self, entry: Entry) -> str | None:
        value = (self.fs.info(f"{self.name}/{entry.key}").get("metadata") or {}).get(DIGEST)
        return None if value is None else str(value)


def _named(connection: str, name: str) -> str:
    """Return one value of a connection string."""
    match = re.search(rf"(?:^|;)\s*{name}=([^;]*)", connection)
    return match[1] if match else ""
