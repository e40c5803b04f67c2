"""The tables as they are now; how they came to be stands in migrations/. Knows nothing about databases."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, text

METADATA = MetaData()

KEYS = Table(
    "largeforge_keys",
    METADATA,
    # SQLite counts up by itself only in a column that it knows as INTEGER
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 in hex; the key itself is nowhere
    Column("prefix", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("scopes", String(200), nullable=False),  # words with spaces between
    Column("created", Double, nullable=False),  # this and the next: seconds since 1970, UTC
    Column("expires", Double),
    Column("revoked", Double),
    Column("last_used", Double),
    Index("largeforge_keys_digest", "digest", unique=True),
    # a name is free again once its key was revoked: keys are changed for new ones of the same name
    Index("largeforge_keys_name", "name", unique=True, sqlite_where=text("revoked IS NULL"), postgresql_where=text("revoked IS NULL")),
)
