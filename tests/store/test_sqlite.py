"""What is SQLite's own: the file, who may read it, and what goes wrong with it."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from largeforge.call import Key, digest_of
from largeforge.errors import StoreError
from tests.store.conftest import sqlite


def test_the_file_is_its_owners_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = sqlite(None)
    store.open()
    with store.connected(writing=True):
        made = sorted((tmp_path / ".largeforge").iterdir())
        assert [path.name for path in made] == ["store.sqlite3", "store.sqlite3-shm", "store.sqlite3-wal"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    store.close()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    store, other = sqlite(tmp_path / "s"), sqlite(tmp_path / "s", busy_timeout_s=0.1)
    store.open()
    store.add_key(Key(0, "alice", "lf-01234"), digest=digest_of("alice"))
    with store.connected(writing=True):
        assert other.num_keys() == 1
        found = other.find_key(digest_of("alice"))  # its last use cannot be noted now
        assert found is not None and found.name == "alice"
        with pytest.raises(StoreError, match="cannot be used: database is locked"):
            other.revoke("alice")
    other.revoke("alice")
    store.close()
    other.close()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear database, " * 100)
    with pytest.raises(StoreError, match="letter.txt cannot be used: file is not a database.\nTry: store.path="):
        sqlite(letter).open()
    assert letter.read_text().startswith("Dear database")
    with pytest.raises(StoreError, match="cannot be opened: Not a directory"):
        sqlite(letter / "store").open()
    with pytest.raises(StoreError, match="cannot be used: unable to open database file"):
        sqlite(tmp_path).open()


def test_a_file_that_went_away(tmp_path: Path) -> None:
    """Faults of a store that is open are StoreErrors too, and show neither statement nor digest."""
    store = sqlite(tmp_path / "s")
    store.open()
    with sqlite3.connect(tmp_path / "s") as connection:
        connection.execute("DROP TABLE largeforge_keys")
    connection.close()
    with pytest.raises(StoreError) as told:
        store.find_key(digest_of("alice"))
    assert "no such table" in str(told.value)
    assert digest_of("alice") not in str(told.value) and "SELECT" not in str(told.value)
    assert told.value.__cause__ is None and told.value.__suppress_context__
    store.close()
