"""Files and batches, jobs by their owner, and which job another one is a retry of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("retry_of", sa.String(40)))
    op.add_column("jobs", sa.Column("batch_id", sa.String(40)))
    op.add_column("jobs", sa.Column("batch_line", sa.Integer))
    op.create_index("ix_jobs_owner", "jobs", ["api_key_id", "id"])
    of_batch = sa.text("batch_id IS NOT NULL")
    op.create_index(
        "ix_jobs_batch",
        "jobs",
        ["batch_id", "batch_line", "state"],
        sqlite_where=of_batch,
        postgresql_where=of_batch,
    )
    unended = sa.text("batch_id IS NOT NULL AND finished_at IS NULL")
    op.create_index("ix_jobs_batch_open", "jobs", ["batch_id"], sqlite_where=unended, postgresql_where=unended)
    op.create_table(
        "files",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("api_key_id", sa.String(40), sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("path", sa.String(120), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
    )
    op.create_index("ix_files_path", "files", ["path"])
    op.create_index("ix_files_owner", "files", ["api_key_id", "id"])
    op.create_index("ix_files_expiry", "files", ["expires_at"])
    op.create_table(
        "batches",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("api_key_id", sa.String(40), sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("pool", sa.String(32), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(40), nullable=False),
        sa.Column("window", sa.String(16), nullable=False),
        sa.Column("output_ms", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.Text),
        sa.Column("webhook", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("in_progress_at", sa.BigInteger),
        sa.Column("finalizing_at", sa.BigInteger),
        sa.Column("cancelling_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("faults", sa.Text),
        sa.Column("validated", sa.Boolean, nullable=False),
        sa.Column("loaded", sa.Boolean, nullable=False),
        sa.Column("read_to", sa.BigInteger, nullable=False),
        sa.Column("lines_read", sa.Integer, nullable=False),
        sa.Column("output_file_id", sa.String(40)),
        sa.Column("error_file_id", sa.String(40)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("lease_expires_at", sa.BigInteger),
    )
    op.create_index("ix_batches_owner", "batches", ["api_key_id", "id"])
    op.create_index("ix_batches_input", "batches", ["input_file_id"])
    still = sa.text("ended_at IS NULL")
    op.create_index("ix_batches_open", "batches", ["due_at"], sqlite_where=still, postgresql_where=still)
    op.create_index("ix_batches_ended", "batches", ["ended_at"])
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.String(40), primary_key=True),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("by_url", sa.Boolean, nullable=False),
        sa.Column("refusal", sa.Text),
    )
