"""A store in a file of this machine: SQLite, for all doors on it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

from largeforge.config.places import user_folder
from largeforge.errors import StoreError
from largeforge.store.base import Database, SQLAlchemyError, sa, told
from largeforge.store.config import SQLiteConfig

POOL_WAIT_S = 5.0
"""Seconds to wait for a connection while threads of this process hold them all."""


class SQLite(Database):
    """The file is readable by its owner only, and written ahead (WAL): who reads does not wait for who writes.

    Args:
        config: the typed choice.
    """

    faults = (SQLAlchemyError, sqlite3.Error)  # what a listener meets is not SQLAlchemy's

    def __init__(self, config: SQLiteConfig) -> None:
        self.path = Path(config.path).expanduser() if config.path else user_folder() / "store.sqlite3"
        url = sa.URL.create("sqlite", database=str(self.path))
        engine = sa.create_engine(url, hide_parameters=True, pool_timeout=POOL_WAIT_S, connect_args={"timeout": config.busy_timeout_s})
        sa.event.listen(engine, "connect", _connected)
        sa.event.listen(engine, "begin", _begun)
        super().__init__(engine, place=str(self.path))

    def open(self) -> None:
        """Make the file where there is none, then bring its tables up to date. Raises StoreError."""
        try:
            with contextlib.suppress(FileExistsError):  # a file where the folder should be: the next line tells it better
                self.path.parent.mkdir(parents=True, exist_ok=True)
            # made here rather than by SQLite, so that it is never open to others, not even for a moment; -wal and -shm take its mode
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass  # and not even looked at: closing a file drops every lock that this process has on it
        except OSError as fault:
            raise StoreError(f"{self.path} cannot be opened: {fault.strerror}.", next_step="store.path=<a file that may be written>") from None
        super().open()

    def lock(self, connection: sa.Connection) -> None:
        """Nothing is left to do: the transaction began with BEGIN IMMEDIATE, which one process has at a time."""

    def unreachable(self, fault: Exception) -> StoreError:
        return StoreError(f"{self.path} cannot be used: {told(fault)}.", next_step="store.path=<another file>; or free the disk, or end what holds it")


def _connected(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so: Python's own begin late, and would not hold for CREATE TABLE
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # a key that was revoked must not come back with the power


def _begun(connection: sa.Connection) -> None:
    # who means to write says so at once: a reader that turns writer is refused without waiting where another wrote meanwhile
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")
