"""What the choice of the next job looks at: lanes, priorities, deadlines, turns, and what workers can do."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# As router.choice and router.jobs had them when this was written.
PATIENCE_MS = 24 * 3_600_000
PIXEL_CLASS = 512 * 512
STEPS = {"V4_QUALITY_48": 48, "V4_DEFAULT_20": 20, "V4_TURBO_12": 12, None: 20}


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("pool", sa.String(32), primary_key=True),
        sa.Column("api_key_id", sa.String(40), sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("turn", sa.BigInteger, nullable=False),
    )
    for column in (
        sa.Column("tier", sa.String(32)),
        sa.Column("model", sa.String(200)),
        sa.Column("max_pixels", sa.Integer),
    ):
        op.add_column("workers", column)
    # The defaults are for rows that have ended; nothing reads these columns of theirs.
    for column in (
        sa.Column("precedence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("deadline", sa.BigInteger),
        sa.Column("tier", sa.String(32)),
        sa.Column("model", sa.String(200)),
        sa.Column("pixels", sa.Integer, nullable=False, server_default="0"),
        sa.Column("work", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lane", sa.String(300), nullable=False, server_default=""),
        sa.Column("due_at", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("jobs", column)
    _fill_in()
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index("ix_jobs_states", "jobs", ["pool", "state"])
    waiting = sa.text("state = 'queued'")
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["pool", "lane", "precedence", "due_at", "id", "work"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    running = sa.text("state = 'running'")
    op.create_index("ix_jobs_running", "jobs", ["api_key_id"], sqlite_where=running, postgresql_where=running)
    due = sa.text("state = 'queued' AND deadline IS NOT NULL")
    op.create_index("ix_jobs_deadlines", "jobs", ["deadline"], sqlite_where=due, postgresql_where=due)
    op.drop_index("ix_attempts_pool", "attempts")
    op.create_index("ix_attempts_pool", "attempts", ["pool", "end", "ended_at"])
    if op.get_bind().dialect.name == "postgresql":
        # A queue's rows change often and the dead ones lie where the choice looks first: clean up early.
        op.execute(
            "ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)"
        )


def _fill_in() -> None:
    jobs = sa.table(
        "jobs",
        *map(sa.column, ("id", "api_key_id", "state", "request", "created_at", "pixels", "work", "lane", "due_at")),
    )
    open_jobs = op.get_bind().execute(sa.select(jobs).where(jobs.c.state.in_(("queued", "running")))).all()
    for row in open_jobs:
        request = json.loads(row.request)
        pixels = request["width"] * request["height"]
        work = pixels * (request.get("steps") or STEPS[request.get("preset")])
        op.execute(
            jobs.update()
            .where(jobs.c.id == row.id)
            .values(
                pixels=pixels,
                work=work,
                lane=f"{row.api_key_id}/{-(-pixels // PIXEL_CLASS):02}/{work.bit_length():02}//",
                due_at=row.created_at + PATIENCE_MS,
            )
        )
