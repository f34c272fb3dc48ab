"""Indexes: the choice never walks along what waits, and the retention finds what is old and whose an image is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.drop_index("ix_jobs_states", "jobs")
    _create("ix_jobs_states", ["pool", "state"], "state <> 'queued'")
    op.drop_index("ix_jobs_waiting", "jobs")
    _create("ix_jobs_waiting", ["pool", "lane", "precedence", "due_at", "id", "work", "state"], "state = 'queued'")
    _create("ix_jobs_ended", ["finished_at"], "finished_at IS NOT NULL")
    op.create_index("ix_jobs_images", "jobs", ["image_path"])


def _create(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
