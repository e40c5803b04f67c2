"""The steps that tables take: from nothing, from every older revision, at once from several processes, and not from a newer one."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from largeforge.call import Key, digest_of
from largeforge.errors import StoreError
from largeforge.store.base import MIGRATIONS, VERSION_TABLE, Database, sa
from largeforge.store.tables import METADATA
from tests.store.conftest import Maker, sqlite

REVISIONS = [step.revision for step in ScriptDirectory(str(MIGRATIONS)).walk_revisions()][::-1]
OLD_ROW = {"name": "old", "digest": digest_of("old"), "prefix": "lf-old", "priority": 1, "scopes": "infer", "created": 1.0}


def bring(store: Database, revision: str, *, back: bool = False) -> None:
    """Take the tables to a revision, without the store's own `open`."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with store.connected(writing=True) as connection:
        config.attributes.update(connection=connection, version_table=VERSION_TABLE)
        (command.downgrade if back else command.upgrade)(config, revision)


def revision(store: Database) -> str | None:
    with store.connected() as connection:
        return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def tables(store: Database) -> set[str]:
    with store.connected() as connection:
        return set(sa.inspect(connection).get_table_names())


def differences(store: Database) -> list[Any]:
    with store.connected() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True}), METADATA))


def test_from_nothing_the_tables_are_as_the_code_has_them(new_store: Maker) -> None:
    store = new_store()
    store.open()
    assert revision(store) == REVISIONS[-1]
    assert differences(store) == []
    store.open()
    with store.connected(writing=True) as connection:
        connection.execute(sa.text("ALTER TABLE largeforge_keys ADD COLUMN stranger INTEGER"))
    assert differences(store) != []  # the comparison sees something


@pytest.mark.parametrize("older", REVISIONS)
def test_from_every_revision(new_store: Maker, older: str) -> None:
    """A key that was made then opens the door now."""
    store = new_store()
    if isinstance(store, type(sqlite(None))):
        store.path.touch(mode=0o600)
    bring(store, older)
    with store.connected(writing=True) as connection:
        columns = ", ".join(OLD_ROW)
        connection.execute(sa.text(f"INSERT INTO largeforge_keys ({columns}) VALUES ({', '.join(':' + name for name in OLD_ROW)})"), OLD_ROW)
    assert revision(store) == older
    store.open()
    assert revision(store) == REVISIONS[-1] and differences(store) == []
    found = store.find_key(digest_of("old"))
    assert found is not None and (found.name, found.priority) == ("old", 1)


def test_every_step_goes_back(new_store: Maker) -> None:
    store = new_store()
    store.open()
    for older in [*REVISIONS[-2::-1], "base"]:
        bring(store, older, back=True)
    assert tables(store) == {VERSION_TABLE}
    store.open()
    assert differences(store) == []


def test_a_newer_database_is_refused_and_left_as_it_is(new_store: Maker) -> None:
    store = new_store()
    store.open()
    store.add_key(Key(0, "alice", "lf-01234"), digest=digest_of("alice"))
    with store.connected(writing=True) as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(
        StoreError, match=r"are of revision 9999; LargeForge .* knows them up to 0002: a newer one has changed them.\nTry: pip install --upgrade"
    ):
        new_store().open()
    assert revision(store) == "9999" and store.num_keys() == 1


def test_a_step_that_fails_leaves_the_old_tables_whole(new_store: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps are one transaction: nothing is half done where the power goes."""
    store = new_store()
    real = store._upgrade

    def broken(config: Any) -> None:
        real(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_upgrade", broken)
    with pytest.raises(KeyboardInterrupt):
        store.open()
    assert tables(store) == set()
    new_store().open()
    assert differences(store) == []


def test_threads_that_open_at_once(new_store: Maker) -> None:
    stores = [new_store() for _ in range(8)]
    faults: list[BaseException] = []
    ready = threading.Barrier(len(stores))

    def work(store: Database) -> None:
        try:
            ready.wait()
            store.open()
            assert store.num_keys() == 0
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert differences(stores[0]) == []


def test_processes_that_open_at_once(new_store: Maker) -> None:
    """Doors on one machine that start together: one takes the steps, the others wait for it."""
    store = new_store()
    made = f"sqlite({str(store.path)!r})" if hasattr(store, "path") else f"postgresql({store.engine.url.render_as_string(hide_password=False)!r})"
    code = f"""
import sys, threading
from tests.store.conftest import postgresql, sqlite
store = {made}
print("ready", flush=True)
sys.stdin.readline()
store.open()
print(store.num_keys())
"""
    doors = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for door in doors:
        assert door.stdout is not None and door.stdout.readline() == "ready\n"
    for door in doors:
        assert door.stdin is not None
        door.stdin.write("go\n")
        door.stdin.flush()
    told = [door.communicate(timeout=60) for door in doors]
    assert [(out, err) for out, err in told] == [("0\n", "")] * 4
    assert differences(store) == []
