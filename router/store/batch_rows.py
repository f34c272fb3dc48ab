"""Batches as their owners see them: transactions of the store, as plain functions of a connection. Who works at them
is `router.store.batch_work_rows`'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, insert, select, update

from router.batches import Batch, BatchState, Counts, Fault, Moments, NewBatch
from router.contract import JobState
from router.errors import IdempotencyError
from router.ids import batch_id as named
from router.limits import Rate
from router.store import ApiKey, KeyRecord, Repeatable, key_rows
from router.store.admission_rows import claim, within_limits
from router.store.job_rows import Now
from router.store.tables import batch_lines, batches, idempotency, jobs

CANCELLABLE = (BatchState.VALIDATING, BatchState.IN_PROGRESS, BatchState.FINALIZING)


def create(
    connection: Connection, now: Now, entropy: bytes, key: ApiKey, new: NewBatch, repeatable: Repeatable | None
) -> tuple[Batch, Rate | None]:
    if repeatable is not None and not claim(connection, now, key, repeatable):
        return _joined(connection, key, repeatable), None
    rate = within_limits(connection, now, key, new.pool, 0)
    at = connection.execute(select(now)).scalar_one()
    values = {
        "id": named(at, entropy),
        "api_key_id": key.id,
        "pool": new.pool,
        "endpoint": new.endpoint,
        "input_file_id": new.input_file_id,
        "window": new.window,
        "output_ms": new.output_ms,
        "metadata": None if new.metadata is None else json.dumps(dict(new.metadata)),
        "webhook": new.webhook,
        "state": BatchState.VALIDATING,
        "created_at": at,
        "expires_at": at + new.window_ms,
        "total": 0,
        "completed": 0,
        "failed": 0,
        "validated": False,
        "loaded": False,
        "read_to": 0,
        "lines_read": 0,
        "attempt": 0,
        "due_at": at,
    }
    row = connection.execute(insert(batches).values(values).returning(batches)).one()
    if repeatable is not None:
        mine = (idempotency.c.api_key_id == key.id, idempotency.c.name == repeatable.name)
        connection.execute(update(idempotency).where(*mine).values(job_ids=row.id))
    return batch(row), rate


def _joined(connection: Connection, key: ApiKey, repeatable: Repeatable) -> Batch:
    row = connection.execute(
        select(idempotency).where(idempotency.c.api_key_id == key.id, idempotency.c.name == repeatable.name)
    ).one()
    found = find(connection, key.id, row.job_ids) if row.body_sha256 == repeatable.body_sha256 else None
    if found is None:
        raise IdempotencyError(
            f"the Idempotency-Key {repeatable.name} came with another request before; a new request wants a new key"
        )
    return found


def find(connection: Connection, api_key_id: str, batch_id: str) -> Batch | None:
    wanted = select(batches).where(batches.c.api_key_id == api_key_id, batches.c.id == batch_id)
    rows = connection.execute(wanted).all()
    return _counted(connection, rows)[0] if rows else None


def every(connection: Connection, api_key_id: str, after: str | None, limit: int) -> Sequence[Batch]:
    wanted = select(batches).where(batches.c.api_key_id == api_key_id).order_by(batches.c.id.desc()).limit(limit)
    if after is not None:
        wanted = wanted.where(batches.c.id < after)
    return _counted(connection, connection.execute(wanted).all())


def ask_to_cancel(connection: Connection, now: Now, api_key_id: str, batch_id: str) -> Batch | None:
    _cancel(connection, now, batches.c.api_key_id == api_key_id, batches.c.id == batch_id)
    return find(connection, api_key_id, batch_id)


def revoke_key(connection: Connection, now: Now, name: str) -> KeyRecord | None:
    """With its batches: nobody is there any more to pay for their images, or to fetch them."""
    found = key_rows.revoke(connection, now, name)
    if found is not None:
        _cancel(connection, now, batches.c.api_key_id == found.key.id)
    return found


def _cancel(connection: Connection, now: Now, *which: ColumnElement[bool]) -> None:
    wanted = update(batches).where(*which, batches.c.state.in_(CANCELLABLE))
    connection.execute(wanted.values(state=BatchState.CANCELLING, cancelling_at=now, due_at=now))


def _counted(connection: Connection, rows: Sequence[Row[Any]]) -> list[Batch]:
    """With the counts as they are now; those of batches that have ended are in their rows."""
    counts = _counts(connection, [row.id for row in rows if row.ended_at is None and row.validated])
    return [batch(row, counts.get(row.id)) for row in rows]


def _counts(connection: Connection, wanted: Sequence[str]) -> Mapping[str, tuple[int, int]]:
    """How many lines of each are made, and will not be. Read from the index alone."""
    if not wanted:
        return {}
    made = func.sum(case((jobs.c.state == JobState.SUCCEEDED, 1), else_=0))
    lost = func.sum(case((jobs.c.state.in_((JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)), 1), else_=0))
    lines = (
        select(jobs.c.batch_id, func.count().label("jobs"), made.label("made"), lost.label("lost"))
        .where(jobs.c.batch_id.in_(wanted))
        .group_by(jobs.c.batch_id, jobs.c.batch_line)
        .subquery()
    )
    found = dict.fromkeys(wanted, (0, 0))
    summed = select(
        lines.c.batch_id,
        func.sum(case((lines.c.made == lines.c.jobs, 1), else_=0)),
        func.sum(case((lines.c.lost > 0, 1), else_=0)),
    ).group_by(lines.c.batch_id)
    for name, completed, failed in connection.execute(summed):
        found[name] = int(completed), int(failed)
    refused = select(batch_lines.c.batch_id, func.count()).where(
        batch_lines.c.batch_id.in_(wanted), batch_lines.c.refusal.is_not(None)
    )
    for name, count in connection.execute(refused.group_by(batch_lines.c.batch_id)):
        found[name] = found[name][0], found[name][1] + count
    return found


def batch(row: Row[Any], counts: tuple[int, int] | None = None) -> Batch:
    completed, failed = counts or (row.completed, row.failed)
    return Batch(
        id=row.id,
        api_key_id=row.api_key_id,
        pool=row.pool,
        endpoint=row.endpoint,
        input_file_id=row.input_file_id,
        window=row.window,
        output_ms=row.output_ms,
        metadata=None if row.metadata is None else json.loads(row.metadata),
        webhook=row.webhook,
        state=row.state,
        at=Moments(
            created=row.created_at,
            expires=row.expires_at,
            in_progress=row.in_progress_at,
            finalizing=row.finalizing_at,
            cancelling=row.cancelling_at,
            ended=row.ended_at,
        ),
        counts=Counts(row.total, completed, failed),
        faults=[Fault(**fault) for fault in json.loads(row.faults or "[]")],
        validated=row.validated,
        loaded=row.loaded,
        read_to=row.read_to,
        lines_read=row.lines_read,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        promised=row.promised or 0,
    )


def spelled(faults: Sequence[Fault]) -> str:
    return json.dumps([asdict(fault) for fault in faults])
