"""A store on a PostgreSQL server, for doors on several machines."""

from __future__ import annotations

import math

from largeforge.errors import InputError, MissingExtra, StoreError
from largeforge.store.base import Database, sa, told
from largeforge.store.config import PostgreSQLConfig

POOL_WAIT_S = 5.0
"""Seconds to wait for a connection while threads of this process hold them all."""
SILENCE_MS = 5000
"""Milliseconds after which a server that acknowledges nothing is given up."""
LOCK = 0x6C667374
"""Of the advisory lock on the tables: any number that no other program has."""
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


class PostgreSQL(Database):
    """Survives a restart of the server: a connection is tried before it is used, and made anew where it is dead.

    Args:
        config: the typed choice; its URL's password stands in no message.

    Raises:
        InputError: the URL is none of PostgreSQL's.
        MissingExtra: psycopg is not installed.
    """

    def __init__(self, config: PostgreSQLConfig) -> None:
        url = _url(config.url.get_secret_value())
        host = url.host or url.query.get("host") or "the local socket"
        self.password = str(url.password) if url.password else ""
        arguments = {
            "connect_timeout": max(2, math.ceil(config.connect_timeout_s)),
            "application_name": "largeforge",
            "tcp_user_timeout": SILENCE_MS,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        }
        arguments = {name: value for name, value in arguments.items() if name not in url.query}  # the user's URL wins
        try:
            engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, pool_timeout=POOL_WAIT_S, connect_args=arguments)
        except ImportError as fault:
            raise MissingExtra("psycopg", extra="serve") from fault
        super().__init__(engine, place=f"{url.database or 'the database'} on {host}:{url.port or 5432}")

    def lock(self, connection: sa.Connection) -> None:
        """Wait for PostgreSQL's advisory lock, which a process that dies gives back."""
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": LOCK})

    def unreachable(self, fault: Exception) -> StoreError:
        said = told(fault)
        if self.password:
            said = said.replace(self.password, "***")
        return StoreError(
            f"PostgreSQL ({self.place}) cannot be used: {said}",
            next_step="look whether the server runs there and takes this user; LARGEFORGE_STORE__URL says where",
        )


def _url(text: str) -> sa.URL:
    """Read a URL, naming the driver that is ours. The text holds a password: no error repeats it."""
    wrong = InputError("store.url is no URL of PostgreSQL.", next_step="LARGEFORGE_STORE__URL=postgresql://USER:PASSWORD@HOST:5432/DATABASE")
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise wrong from None
    if url.drivername not in SCHEMES:
        raise wrong
    return url.set(drivername="postgresql+psycopg")
