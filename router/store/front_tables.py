"""The tables of fronts and of what waits at them, beside those of `router.store.tables`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKeyConstraint, Index, Integer, String, Table

from router.store.tables import metadata

# Router processes that answer requests (router.fronts).
fronts = Table(
    "fronts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("beats", BigInteger, nullable=False),
)

# How many of `idempotency.waiting` wait at which front. No foreign key to it: one that was found dead and lives is made
# again, and goes on meanwhile.
waits = Table(
    "waits",
    metadata,
    Column("api_key_id", String(40), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("front", String(40), primary_key=True),
    Column("count", Integer, nullable=False),
    ForeignKeyConstraint(["api_key_id", "name"], ["idempotency.api_key_id", "idempotency.name"], ondelete="CASCADE"),
    Index("ix_waits_front", "front", "api_key_id", "name"),
)
