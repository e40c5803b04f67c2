"""Real databases: SQLite in a file, and a PostgreSQL of these tests' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from largeforge.store.base import Database
from largeforge.store.config import PostgreSQLConfig, SQLiteConfig
from largeforge.store.postgresql import PostgreSQL
from largeforge.store.sqlite import SQLite
from tests.postgres import Postgres, running

Maker = Callable[[], Database]


def sqlite(path: Path | str | None, *, busy_timeout_s: float = 5.0) -> SQLite:
    config = {"_target_": "largeforge.store.sqlite.SQLite", "path": None if path is None else str(path), "busy_timeout_s": busy_timeout_s}
    return SQLite(SQLiteConfig.model_validate(config))


def postgresql(url: str) -> PostgreSQL:
    config = {"_target_": "largeforge.store.postgresql.PostgreSQL", "url": url, "connect_timeout_s": 3.0}
    return PostgreSQL(PostgreSQLConfig.model_validate(config))


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with running() as server:
        yield server


@pytest.fixture
def empty_server(server: Postgres) -> Postgres:
    server.empty()
    return server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    """Makes stores of one database that is empty at the start of the test, each with connections of its own."""
    made: list[Database] = []
    url = request.getfixturevalue("empty_server").url if request.param == "postgresql" else ""

    def make() -> Database:
        made.append(postgresql(url) if url else sqlite(tmp_path / "store.sqlite3"))
        return made[-1]

    yield make
    for store in made:
        store.close()
