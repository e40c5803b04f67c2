"""Typed configs of the group store; imports nothing heavy."""

from __future__ import annotations

from pydantic import Field, SecretStr

from largeforge.config.typed import PartConfig, PositiveFloat


class StoreConfig(PartConfig):
    """Where API keys are kept."""


class SQLiteConfig(StoreConfig):
    """A file on this machine, for all doors on it."""

    path: str | None = Field(description="The database file; null is ~/.largeforge/store.sqlite3.")
    busy_timeout_s: PositiveFloat = Field(description="Seconds to wait for another process that is writing.")


class PostgreSQLConfig(StoreConfig):
    """A PostgreSQL server, for doors on several machines."""

    url: SecretStr = Field(description="postgresql://USER:PASSWORD@HOST:5432/DATABASE, better given as LARGEFORGE_STORE__URL than typed.")
    connect_timeout_s: PositiveFloat = Field(description="Seconds to wait for a connection; PostgreSQL counts whole ones, and no fewer than 2.")
