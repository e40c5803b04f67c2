"""What every store does: tables brought up to date, keys found, made, listed and revoked. A store is a database behind this.

Blocking, and safe from many threads. Knows keys by their digests only, and nothing about who asks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from largeforge import __version__
from largeforge.call import Key, KeyRecord
from largeforge.errors import InputError, MissingExtra, StoreError

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

    from largeforge.store.tables import KEYS
except ImportError as fault:
    raise MissingExtra(fault.name or "sqlalchemy", extra="serve") from fault

__all__ = ["Database", "SQLAlchemyError", "sa", "told"]  # stores take SQLAlchemy from here, where its absence is told

VERSION_TABLE = "largeforge_schema"
"""Where the revision stands: a name of our own, since a database may hold other programs' tables and their alembic_version."""
MIGRATIONS = Path(__file__).parent / "migrations"
LAST_USE_S = 60.0
"""Seconds by which `last_used` may be late: a busy key is not written on every look."""
log = logging.getLogger("largeforge.store")
_migrating = threading.Lock()  # Alembic keeps what it runs in globals of its own


class Database:
    """A store over SQLAlchemy.

    Args:
        engine: to a SQLite or PostgreSQL database; connects when it is first used.
        place: what a person knows the database by, without a password.
    """

    faults: tuple[type[Exception], ...] = (SQLAlchemyError,)

    def __init__(self, engine: sa.Engine, *, place: str) -> None:
        self.engine = engine
        self.place = place

    # ---- what a database does its own way ----

    def lock(self, connection: sa.Connection) -> None:
        """Wait until no other process changes the tables; held until the transaction ends."""
        raise NotImplementedError

    def unreachable(self, fault: Exception) -> StoreError:
        """The error for a database that does not answer, or not as it should."""
        raise NotImplementedError

    # ---- opened and closed ----

    def open(self) -> None:
        """Bring the tables up to date: all steps in one transaction, so that a process that dies leaves the old ones whole.

        Raises:
            StoreError: it cannot be reached, or a newer LargeForge has been here.
        """
        try:
            from alembic.config import Config
            from alembic.script import ScriptDirectory
        except ImportError as fault:
            raise MissingExtra("alembic", extra="serve") from fault
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        script = ScriptDirectory.from_config(config)
        known = [step.revision for step in script.walk_revisions()]  # the newest first
        with self.connected() as connection:
            if self._revision(connection, known) == known[0]:
                return  # as nearly always; a door needs no right to change tables for this
        with self.connected(writing=True) as connection:
            self.lock(connection)
            before = self._revision(connection, known)
            if before == known[0]:
                return
            config.attributes.update(connection=connection, version_table=VERSION_TABLE)
            self._upgrade(config)
        log.info("tables of %s brought from %s to %s", self.place, before or "nothing", known[0])

    def close(self) -> None:
        """Give connections back; a store that was closed opens new ones when it is used again."""
        self.engine.dispose()

    def _revision(self, connection: sa.Connection, known: list[str]) -> str | None:
        from alembic.runtime.migration import MigrationContext

        revision = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
        if revision is not None and revision not in known:
            raise StoreError(
                f"The tables of {self.place} are of revision {revision}; LargeForge {__version__} knows them up to {known[0]}: a newer one has changed them.",
                next_step="pip install --upgrade largeforge on this machine, or another store",
            )
        return revision

    def _upgrade(self, config: Any) -> None:
        from alembic import command

        with _migrating:
            command.upgrade(config, "head")

    @contextmanager
    def connected(self, *, writing: bool = False) -> Iterator[sa.Connection]:
        """A connection in a transaction: kept where the block ends well.

        Raises:
            StoreError: the database does not answer, or not as it should; the statement and its values are not told.
        """
        engine = self.engine.execution_options(writing=True) if writing else self.engine
        try:
            with engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise  # not the database's fault: the caller knows what was there already
        except self.faults as fault:
            raise self.unreachable(fault) from None  # a chained fault would show the statement's values, or a URL's password

    # ---- keys ----

    def find_key(self, digest: str) -> Key | None:
        """Return the valid key of a digest, None where there is none."""
        now = time.time()
        with self.connected() as connection:
            row = connection.execute(sa.select(KEYS).where(KEYS.c.digest == digest)).one_or_none()
        if row is None:
            return None
        record = _record(row)
        if not record.valid(now):
            return None
        if record.last_used is None or not 0 <= now - record.last_used < LAST_USE_S:
            self._note_use(record.key, now)
        return record.key

    def num_keys(self) -> int:
        """How many keys are valid now."""
        valid = sa.and_(KEYS.c.revoked.is_(None), sa.or_(KEYS.c.expires.is_(None), KEYS.c.expires > time.time()))
        with self.connected() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(KEYS).where(valid)).scalar_one())

    def add_key(self, key: Key, *, digest: str) -> Key:
        """Keep a new key and return it with its id. Raises InputError where its name is taken."""
        values = {
            "name": key.name,
            "digest": digest,
            "prefix": key.prefix,
            "priority": key.priority,
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_minute": key.tokens_per_minute,
            "scopes": " ".join(key.scopes),
            "created": time.time(),
            "expires": key.expires,
        }
        try:
            with self.connected(writing=True) as connection:
                made = connection.execute(sa.insert(KEYS).values(values)).inserted_primary_key
        except IntegrityError:
            raise InputError(
                f"A key of the name {key.name} is in {self.place} already; a key is shown once, when it is made.",
                next_step=f"another name, or revoke={key.name} first and then make it anew",
            ) from None
        assert made is not None
        return replace(key, id=made[0])

    def keys(self) -> list[KeyRecord]:
        """Every key, the oldest first."""
        with self.connected() as connection:
            return [_record(row) for row in connection.execute(sa.select(KEYS).order_by(KEYS.c.id))]

    def revoke(self, name: str) -> Key:
        """Make a key worthless that is named by its name, or else by its prefix. Raises InputError where it is not one key."""
        live = KEYS.c.revoked.is_(None)
        with self.connected(writing=True) as connection:
            found = connection.execute(sa.select(KEYS).where(live, KEYS.c.name == name)).all()
            found = found or connection.execute(sa.select(KEYS).where(live, KEYS.c.prefix == name)).all()
            if len(found) != 1:
                raise InputError(
                    f"{len(found)} keys in {self.place} begin with {name}: {', '.join(row.name for row in found)}."
                    if found
                    else f"No key in {self.place} has the name or the first letters {name}, or it was revoked before.",
                    next_step="revoke=<name>; python -m largeforge task=keys lists them",
                )
            connection.execute(sa.update(KEYS).where(KEYS.c.id == found[0].id).values(revoked=time.time()))
        return _record(found[0]).key

    def _note_use(self, key: Key, now: float) -> None:
        """Write when a key was last used; a database that can be read but not written still opens the door."""
        try:
            with self.connected(writing=True) as connection:
                connection.execute(sa.update(KEYS).where(KEYS.c.id == key.id).values(last_used=now))
        except StoreError as fault:
            log.warning("the last use of key %s could not be noted: %s", key.prefix, fault.message)


def told(fault: Exception) -> str:
    """What the database's own library said, in a line: without statement and values."""
    original = fault.orig if isinstance(fault, DBAPIError) else None if isinstance(fault, SQLAlchemyError) else fault
    return " ".join(str(original or type(fault).__name__).split())


def _record(row: Any) -> KeyRecord:
    key = Key(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        priority=row.priority,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        scopes=tuple(row.scopes.split()),
        expires=row.expires,
    )
    return KeyRecord(key, created=row.created, revoked=row.revoked, last_used=row.last_used)
