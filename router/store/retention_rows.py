"""Forgetting what is old: transactions of the store, as plain functions of a connection."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from router.store.job_rows import Now
from router.store.tables import attempts, batches, files, idempotency, jobs


def forget_jobs(connection: Connection, now: Now, older_ms: int, limit: int) -> int:
    """Of the jobs that ended so long ago, at most `limit`, the oldest first. How many it were."""
    # Its batch's files are still to be written from it.
    needed = select(batches.c.id).where(batches.c.id == jobs.c.batch_id, batches.c.ended_at.is_(None)).exists()
    old = select(jobs.c.id).where(jobs.c.finished_at.is_not(None), jobs.c.finished_at <= now - older_ms, ~needed)
    ids = connection.scalars(old.order_by(jobs.c.finished_at).limit(limit).with_for_update(skip_locked=True)).all()
    if ids:
        connection.execute(delete(attempts).where(attempts.c.job_id.in_(ids)))
        connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)


def forget_repetitions(connection: Connection, now: Now, older_ms: int) -> None:
    connection.execute(delete(idempotency).where(idempotency.c.created_at <= now - older_ms))


def named_images(connection: Connection, paths: Sequence[str]) -> frozenset[str]:
    of_jobs = connection.scalars(select(jobs.c.image_path).where(jobs.c.image_path.in_(paths)))
    return frozenset(of_jobs) | frozenset(connection.scalars(select(files.c.path).where(files.c.path.in_(paths))))
