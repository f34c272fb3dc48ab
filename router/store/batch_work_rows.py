"""Working at batches: transactions of the store, as plain functions of a connection.

Every change is guarded by the lease: it names the attempt and wants it unexpired, and raises LeaseLostError where
that is not so, which undoes the transaction. `now` is always the store's clock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, false, func, insert, null, or_, select, update

from router.batches import (
    ERROR_BYTES,
    Batch,
    BatchLease,
    BatchState,
    DoneLine,
    Fault,
    LineRefusal,
    Outcome,
    Quota,
    Read,
    mebibytes,
)
from router.contract import WebhookType
from router.errors import LeaseLostError, OutputTooLargeError
from router.jobs import Job
from router.store import ApiKey, file_rows, job_rows, key_rows, webhook_rows
from router.store.admission_rows import room_of_key, room_of_pool
from router.store.batch_rows import CANCELLABLE, batch, spelled
from router.store.job_rows import WAITING, Now
from router.store.tables import api_keys, batch_lines, batches, jobs

UNENDED = jobs.c.finished_at.is_(None)
"""As the index of a batch's open jobs says it."""


def due(connection: Connection, now: Now) -> str | None:
    """A batch at which there is something to do, and nobody who does it."""
    return connection.execute(_due(now)).scalar_one_or_none()


def _due(now: Now) -> Any:  # noqa: ANN401 - a statement's own type says nothing more
    idle = ~select(jobs.c.id).where(jobs.c.batch_id == batches.c.id, UNENDED).exists()
    return (
        select(batches.c.id)
        .where(
            batches.c.ended_at.is_(None),
            batches.c.due_at <= now,
            or_(batches.c.lease_expires_at.is_(None), batches.c.lease_expires_at <= now),
            or_(batches.c.loaded == false(), batches.c.state == BatchState.CANCELLING, idle),
        )
        .order_by(batches.c.due_at, batches.c.id)
        .limit(1)
    )


def claim(connection: Connection, now: Now, ttl_ms: int) -> BatchLease | None:
    # Apart from the UPDATE: Postgres may carry a subquery's LIMIT out once for each row that it looks at.
    wanted = connection.execute(_due(now).with_for_update(skip_locked=True)).scalar_one_or_none()
    if wanted is None:
        return None
    row = connection.execute(
        update(batches)
        .where(batches.c.id == wanted)
        .values(attempt=batches.c.attempt + 1, lease_expires_at=now + ttl_ms)
        .returning(batches)
    ).one()
    if row.state in CANCELLABLE and _revoked(connection, row.api_key_id):
        # Its batches are cancelled with a key; this one was made by a request that was under way then.
        cancelling = {"state": BatchState.CANCELLING, "cancelling_at": now}
        row = connection.execute(
            update(batches).where(batches.c.id == row.id).values(**cancelling).returning(batches)
        ).one()
    return BatchLease(batch(row), row.attempt)


def _revoked(connection: Connection, api_key_id: str) -> bool:
    found = select(api_keys.c.id).where(api_keys.c.id == api_key_id, api_keys.c.revoked_at.is_not(None))
    return connection.execute(found).first() is not None


def _held(now: Now, lease: BatchLease) -> ColumnElement[bool]:
    return and_(
        batches.c.id == lease.batch.id,
        batches.c.attempt == lease.attempt,
        batches.c.lease_expires_at > now,
        batches.c.ended_at.is_(None),
    )


def _change(connection: Connection, now: Now, lease: BatchLease, **values: object) -> Batch:
    changed = update(batches).where(_held(now, lease)).values(**values).returning(batches)
    row = connection.execute(changed).one_or_none()
    if row is None:
        raise LeaseLostError(lease.batch.id)
    return batch(row)


def renew(connection: Connection, now: Now, lease: BatchLease, ttl_ms: int) -> None:
    _change(connection, now, lease, lease_expires_at=now + ttl_ms)


def release(connection: Connection, now: Now, lease: BatchLease, pause_ms: int) -> None:
    # Who asked to cancel it meanwhile has made it due.
    due_at = {"due_at": now + pause_ms} if pause_ms else {}
    ours = (batches.c.id == lease.batch.id, batches.c.attempt == lease.attempt)
    connection.execute(update(batches).where(*ours).values(lease_expires_at=null(), **due_at))


def validated(connection: Connection, now: Now, lease: BatchLease, total: int, output: int, quota: Quota) -> Batch:
    promise(connection, now, lease, output, quota)
    found = _change(connection, now, lease, validated=True, total=total)
    if found.state is not BatchState.VALIDATING:
        return found
    return _change(connection, now, lease, state=BatchState.IN_PROGRESS, in_progress_at=now)


def promise(connection: Connection, now: Now, lease: BatchLease, output: int, quota: Quota) -> None:
    file_rows.lock(connection, lease.batch.api_key_id)
    own = connection.execute(select(batches.c.promised).where(batches.c.id == lease.batch.id)).scalar_one() or 0
    held = file_rows.kept(connection, now, lease.batch.api_key_id)
    room = replace(held, promised=held.promised - own).room(quota)
    if output > room:
        raise OutputTooLargeError(mebibytes(output), mebibytes(room))
    _change(connection, now, lease, promised=output)


def fail(connection: Connection, now: Now, lease: BatchLease, faults: Sequence[Fault]) -> None:
    ended = _change(
        connection,
        now,
        lease,
        state=case((batches.c.state == BatchState.CANCELLING, BatchState.CANCELLED), else_=BatchState.FAILED),
        ended_at=now,
        faults=spelled(faults),
        failed=batches.c.total,
        lease_expires_at=null(),
    )
    _promise(connection, ended, ended.at.ended)


def add_lines(
    connection: Connection,
    now: Now,
    entropies: Sequence[bytes],
    lease: BatchLease,
    key: ApiKey,
    read: Read,
    pool_bound: int,
) -> Batch:
    # First, for its lock: of two who believe that they hold the lease, one waits here for the other.
    changed = _change(connection, now, lease, read_to=read.read_to, lines_read=read.lines_read, loaded=read.whole)
    if read.lines:
        rows = [
            {
                "batch_id": lease.batch.id,
                "line": line.line,
                "custom_id": line.custom_id,
                "by_url": line.by_url,
                "refusal": None if line.refusal is None else _spelled(line.refusal),
                "foreseen": line.foreseen,
            }
            for line in read.lines
        ]
        connection.execute(insert(batch_lines), rows)
    wanted = [new for line in read.lines for new in line.wanted]
    if wanted:
        room_of_key(connection, key, lease.batch.pool, len(wanted))
        room_of_pool(connection, lease.batch.pool, pool_bound, len(wanted))
        job_rows.add(connection, now, entropies, key.id, lease.batch.pool, wanted)
    return changed


def lines_added(connection: Connection, batch_id: str) -> int:
    return connection.execute(
        select(func.count()).select_from(batch_lines).where(batch_lines.c.batch_id == batch_id)
    ).scalar_one()


def refusals(connection: Connection, batch_id: str, limit: int, unless: LineRefusal) -> Sequence[Fault] | None:
    other = (
        select(jobs.c.id).where(jobs.c.batch_id == batch_id),
        select(batch_lines.c.line).where(batch_lines.c.batch_id == batch_id, batch_lines.c.refusal == _spelled(unless)),
    )
    if any(connection.execute(found.limit(1)).first() is not None for found in other):
        return None
    refused = (
        select(batch_lines.c.line, batch_lines.c.refusal)
        .where(batch_lines.c.batch_id == batch_id, batch_lines.c.refusal.is_not(None))
        .order_by(batch_lines.c.line)
        .limit(limit)
    )
    found = [(row.line, _refusal(row.refusal)) for row in connection.execute(refused)]
    return [Fault(why.code, why.message, line, why.param) for line, why in found if why is not None]


def cancel_waiting(connection: Connection, now: Now, lease: BatchLease, limit: int) -> Sequence[Job]:
    _change(connection, now, lease, attempt=batches.c.attempt)
    waiting = select(jobs.c.id).where(jobs.c.batch_id == lease.batch.id, UNENDED, WAITING).limit(limit)
    found = (job_rows.cancel_unstarted(connection, now, name) for name in connection.scalars(waiting).all())
    return [job for job in found if job is not None]


def busy(connection: Connection, batch_id: str) -> bool:
    return (
        connection.execute(select(jobs.c.id).where(jobs.c.batch_id == batch_id, UNENDED).limit(1)).first() is not None
    )


def finalizing(connection: Connection, now: Now, lease: BatchLease) -> Batch:
    return _change(
        connection,
        now,
        lease,
        state=_unless_cancelling(BatchState.FINALIZING),
        finalizing_at=func.coalesce(batches.c.finalizing_at, now),
    )


def _unless_cancelling(state: BatchState) -> ColumnElement[BatchState]:
    """It may have been asked to cancel since its lease was taken."""
    return case((batches.c.state == BatchState.CANCELLING, BatchState.CANCELLING), else_=state)


def foreseen(connection: Connection, batch_id: str) -> int:
    every = func.sum(func.coalesce(batch_lines.c.foreseen, ERROR_BYTES))
    return int(connection.execute(select(every).where(batch_lines.c.batch_id == batch_id)).scalar_one() or 0)


def done_lines(connection: Connection, batch_id: str, after_line: int, limit: int) -> Sequence[DoneLine]:
    wanted = select(batch_lines).where(batch_lines.c.batch_id == batch_id, batch_lines.c.line > after_line)
    rows = connection.execute(wanted.order_by(batch_lines.c.line).limit(limit)).all()
    if not rows:
        return ()
    within = (jobs.c.batch_line >= rows[0].line, jobs.c.batch_line <= rows[-1].line)
    made = select(jobs).where(jobs.c.batch_id == batch_id, *within).order_by(jobs.c.batch_line, jobs.c.id)
    of_line: defaultdict[int, list[Job]] = defaultdict(list)
    for row in connection.execute(made):
        of_line[row.batch_line].append(job_rows.job(row))
    return [
        DoneLine(
            row.line,
            row.custom_id,
            row.by_url,
            _refusal(row.refusal),
            of_line[row.line],
            ERROR_BYTES if row.foreseen is None else row.foreseen,
        )
        for row in rows
    ]


def end(connection: Connection, now: Now, lease: BatchLease, outcome: Outcome) -> None:
    for file in (outcome.output, outcome.errors):
        if file is not None:
            file_rows.add(connection, now, file)
    ended = _change(
        connection,
        now,
        lease,
        state=case((batches.c.state == BatchState.CANCELLING, BatchState.CANCELLED), else_=outcome.state),
        ended_at=now,
        completed=outcome.counts.completed,
        failed=outcome.counts.failed,
        output_file_id=outcome.output and outcome.output.id,
        error_file_id=outcome.errors and outcome.errors.id,
        lease_expires_at=null(),
    )
    _promise(connection, ended, ended.at.ended)


def owner(connection: Connection, api_key_id: str) -> ApiKey | None:
    row = connection.execute(select(api_keys).where(api_keys.c.id == api_key_id)).one_or_none()
    return None if row is None else ApiKey(row.id, row.name, key_rows.limits_of(row))


def _promise(connection: Connection, ended: Batch, at: int | None) -> None:
    if ended.webhook is not None and at is not None:
        event = WebhookType(f"batch.{ended.state.value}")
        webhook_rows.promise_of(connection, ended.api_key_id, ended.webhook, event, ended.id, at)


def _spelled(refusal: LineRefusal) -> str:
    return json.dumps(asdict(refusal))


def _refusal(text: str | None) -> LineRefusal | None:
    return None if text is None else LineRefusal(**json.loads(text))
