"""What Alembic runs for every command: take the steps in the connection and the transaction that the store opened."""

from __future__ import annotations

from alembic import context

from largeforge.store.tables import METADATA

attributes = context.config.attributes
context.configure(connection=attributes["connection"], version_table=attributes["version_table"], target_metadata=METADATA)
context.run_migrations()
