"""Keys with limits that can be revoked, their usage by day, and requests that are repeated under one name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for column in (
        sa.Column("fingerprint", sa.String(12), nullable=False, server_default=""),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("per_minute", sa.Integer),
        sa.Column("max_running", sa.Integer),
        sa.Column("max_waiting", sa.Integer),
        sa.Column("pools", sa.Text),
        sa.Column("tokens", sa.Float),
        sa.Column("tokens_at", sa.BigInteger),
    ):
        op.add_column("api_keys", column)
    op.execute("UPDATE api_keys SET fingerprint = substr(sha256, 1, 12)")
    op.create_index("ix_api_keys_fingerprint", "api_keys", ["fingerprint"])
    op.create_table(
        "usage",
        sa.Column("api_key_id", sa.String(40), sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("images", sa.BigInteger, nullable=False),
        sa.Column("pixels", sa.BigInteger, nullable=False),
        sa.Column("gpu_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "idempotency",
        sa.Column("api_key_id", sa.String(40), sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("job_ids", sa.Text, nullable=False),
        sa.Column("waiting", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_idempotency_age", "idempotency", ["created_at"])
    op.create_table(
        "expected_pools",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
