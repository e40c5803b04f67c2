"""Typed configs of the group storage; imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from largeforge.config.typed import Bool, PartConfig, PositiveFloat

ENDPOINT = "URL of the server; null asks the environment, then the provider's own."
ANONYMOUS = "true reads public buckets without credentials."
CACHE = "Most GiB that fetched files may take in the cache; the least recently used go first."


class StorageConfig(PartConfig):
    """Where files lie."""


class LocalConfig(StorageConfig):
    """This machine's own files; URLs are refused."""


class AutoConfig(StorageConfig):
    """Whatever a path begins with; credentials and endpoints from the environment."""

    cache_gib: PositiveFloat = Field(description=CACHE)


class S3Config(StorageConfig):
    """Amazon S3, and whatever speaks its protocol."""

    endpoint: str | None = Field(description=ENDPOINT, pattern="^https?://")
    region: str | None = Field(description="Region of the bucket; null asks the environment.")
    anonymous: Bool = Field(description=ANONYMOUS)
    cache_gib: PositiveFloat = Field(description=CACHE)


class GSConfig(StorageConfig):
    """Google Cloud Storage."""

    endpoint: str | None = Field(description=ENDPOINT, pattern="^https?://")
    project: str | None = Field(description="Project that pays; null asks the environment.")
    anonymous: Bool = Field(description=ANONYMOUS)
    cache_gib: PositiveFloat = Field(description=CACHE)


class AZConfig(StorageConfig):
    """Azure Blob Storage."""

    endpoint: str | None = Field(description=ENDPOINT, pattern="^https?://")
    account: str | None = Field(description="Storage account; null asks AZURE_STORAGE_ACCOUNT_NAME.")
    anonymous: Bool = Field(description=ANONYMOUS)
    cache_gib: PositiveFloat = Field(description=CACHE)
