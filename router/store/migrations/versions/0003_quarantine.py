"""Workers in quarantine, and the attempts of a worker in the order of their ends."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("workers") as workers:
        workers.add_column(sa.Column("quarantine_cause", sa.String(16)))
        workers.add_column(sa.Column("quarantine_reason", sa.Text))
        workers.add_column(sa.Column("trusted_since", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("ix_attempts_recent", "attempts", ["worker", "ended_at"])
