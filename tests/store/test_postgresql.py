"""What is PostgreSQL's own: where it stands, whom it takes, and that it may be restarted."""

from __future__ import annotations

import time

import pytest

from largeforge.call import Key, digest_of
from largeforge.errors import InputError, StoreError
from tests.postgres import ENCODED, PASSWORD, Postgres
from tests.store.conftest import postgresql

ALICE = Key(0, "alice", "lf-01234")


def test_a_server_that_is_not_there_or_does_not_take_us(server: Postgres) -> None:
    """The error names host and next step, never the password."""
    for url, expected in {
        server.url.replace(str(server.port), "1"): r"PostgreSQL \(largeforge on 127.0.0.1:1\) cannot be used: .*refused",
        server.url.replace(ENCODED, "s3cr3t-word"): "password authentication failed",
        server.url + "base": 'database "largeforgebase" does not exist',
        f"postgres://largeforge:{ENCODED}@no-such-host.invalid/largeforge": r"largeforge on no-such-host.invalid:5432\) cannot be used",
    }.items():
        store = postgresql(url)
        begin = time.monotonic()
        with pytest.raises(StoreError, match=expected) as told:
            store.open()
        assert time.monotonic() - begin < 20
        said = f"{told.value} {told.value!r} {store.place}"
        assert "LARGEFORGE_STORE__URL" in said
        assert not [word for word in (PASSWORD, ENCODED, "s3cr3t-word") if word in said]
        assert told.value.__suppress_context__


@pytest.mark.parametrize("url", ["mysql://u:s3cr3t@host/db", "s3cr3t", "postgresql://u:s3cr3t@host:port/db", "postgresql+asyncpg://u:s3cr3t@h/d", ""])
def test_no_url_of_postgresql(url: str) -> None:
    with pytest.raises(InputError, match="store.url is no URL of PostgreSQL") as told:
        postgresql(url)
    assert "s3cr3t" not in str(told.value)
    assert told.value.__context__ is None or told.value.__suppress_context__


def test_schemes_and_settings_of_the_url(empty_server: Postgres) -> None:
    for url in (empty_server.url, empty_server.url.replace("postgresql", "postgres"), empty_server.url.replace("postgresql", "postgresql+psycopg")):
        store = postgresql(url + "?application_name=mine")
        store.open()
        with store.connected() as connection:
            assert connection.exec_driver_sql("SHOW application_name").scalar_one() == "mine"
        store.close()


def test_restarted_with_kill_9(empty_server: Postgres) -> None:
    """Connections of before are dead, and nobody notices but while it is away."""
    store = postgresql(empty_server.url)
    store.open()
    store.add_key(ALICE, digest=digest_of("alice"))
    empty_server.kill()
    try:
        for _ in range(2):
            with pytest.raises(StoreError, match="127.0.0.1"):
                store.find_key(digest_of("alice"))
    finally:
        empty_server.start()
    assert store.find_key(digest_of("alice")) is not None
    empty_server.kill()
    empty_server.start()
    assert store.num_keys() == 1
    store.close()


def test_a_user_who_may_only_read(empty_server: Postgres) -> None:
    """A door needs no right to change anything once the tables stand."""
    owner = postgresql(empty_server.url)
    owner.open()
    owner.add_key(ALICE, digest=digest_of("alice"))
    with empty_server.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reads'")
        connection.execute("GRANT USAGE ON SCHEMA public TO reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    reader = postgresql(f"postgresql://reader:reads@127.0.0.1:{empty_server.port}/largeforge")
    reader.open()
    assert reader.find_key(digest_of("alice")) is not None and reader.num_keys() == 1
    with pytest.raises(StoreError, match="permission denied"):
        reader.revoke("alice")
    with empty_server.connect() as connection:
        connection.execute("DROP OWNED BY reader")
        connection.execute("DROP ROLE reader")
    reader.close()
    owner.close()


def test_beside_tables_of_others(empty_server: Postgres) -> None:
    """A database that mlflow keeps its own tables and its own revision in is shared without harm."""
    with empty_server.connect() as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('mlflow')")
    store = postgresql(empty_server.url)
    store.open()
    with empty_server.connect() as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("mlflow",)]
    store.close()
