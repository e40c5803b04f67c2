"""When a key was last used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("largeforge_keys", sa.Column("last_used", sa.Double))


def downgrade() -> None:
    op.drop_column("largeforge_keys", "last_used")
