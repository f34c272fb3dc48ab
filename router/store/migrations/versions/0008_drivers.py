"""Several processes that drive workers: who drives a lease, and what each believes of the workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("driver", sa.String(64)))
    # Until now there was but one.
    op.execute("UPDATE jobs SET driver = 'router' WHERE lease_expires_at IS NOT NULL")
    op.create_table(
        "beliefs",
        sa.Column("driver", sa.String(64), primary_key=True),
        sa.Column("worker", sa.String(63), primary_key=True),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("view", sa.Text, nullable=False),
    )
