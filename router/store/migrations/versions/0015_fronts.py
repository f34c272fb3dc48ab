"""Which router process each open request is of, so that those of one that was killed are let go.

`idempotency.waiting` stays what it was: the sum, which a router of an earlier release counts, too.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_table(
        "fronts",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("beats", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "waits",
        sa.Column("api_key_id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("front", sa.String(40), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["api_key_id", "name"], ["idempotency.api_key_id", "idempotency.name"], ondelete="CASCADE"
        ),
    )
    op.create_index("ix_waits_front", "waits", ["front", "api_key_id", "name"])
    op.add_column("jobs", sa.Column("front", sa.String(40)))
    waiting = sa.text("state = 'queued' AND front IS NOT NULL")
    op.create_index("ix_jobs_fronts", "jobs", ["front"], sqlite_where=waiting, postgresql_where=waiting)
