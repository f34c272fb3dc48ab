"""Leases: what becomes of a job that runs, as plain functions of a connection.

Every change to it is one UPDATE guarded by `_HELD`: it names the attempt and its worker and wants it to be the one that
runs, so whoever comes late changes nothing. Late is who comes after the sweep: that a lease has expired only lets
somebody take it, and until then its holder may go on. `now` is always the store's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, assert_never

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    literal,
    null,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from router.contract import JobState
from router.jobs import CRASHES, FAULTS, AttemptEnd, Cancel, Fail, Image, Job, JobError, Lease, Requeue, after
from router.store import Renewal, key_rows, sum_rows, worker_rows
from router.store.job_rows import Now, changed, job
from router.store.tables import attempts, jobs
from worker.contract import Timings

BUILT = 8
"""Statements of one kind that are kept: one for each clock, and there is one clock."""

_HELD = and_(
    jobs.c.id == bindparam("leased_job"),
    jobs.c.state == JobState.RUNNING,
    jobs.c.attempt == bindparam("leased_attempt"),
    jobs.c.worker == bindparam("leased_worker"),
)
"""The guard: the lease that is `_named` still has the right to finish its job."""
_NO_LEASE = {"worker": null(), "driver": null(), "lease_expires_at": null()}
_CLOSED = (
    update(attempts)
    .where(attempts.c.job_id == bindparam("of_job"), attempts.c.attempt == bindparam("of_attempt"))
    .values(end=bindparam("how"), ended_at=bindparam("at"), detail=bindparam("said"), timings=bindparam("took"))
    .returning(attempts.c.pool)
)


@lru_cache(BUILT)
def _renewed(now: Now) -> ReturningUpdate[Any]:
    until = now + bindparam("ttl_ms", type_=BigInteger())
    return update(jobs).where(_HELD).values(lease_expires_at=until).returning(jobs.c.cancel_requested)


def renew(connection: Connection, now: Now, lease: Lease, ttl_ms: int) -> Renewal:
    cancel_requested = connection.execute(_renewed(now), {"ttl_ms": ttl_ms, **_named(lease)}).scalar_one_or_none()
    if cancel_requested is None:
        return Renewal.LOST
    return Renewal.CANCEL if cancel_requested else Renewal.HELD


@lru_cache(BUILT)
def _finished(now: Now) -> ReturningUpdate[Any]:
    return (
        update(jobs)
        .where(_HELD)
        .values(
            state=JobState.SUCCEEDED,
            finished_at=now,
            image_path=bindparam("path"),
            image_sha256=bindparam("sha256"),
            image_bytes=bindparam("bytes"),
            image_media_type=bindparam("media_type"),
            image_suspicion=bindparam("suspicion"),
            image_gpu_ms=bindparam("gpu_ms"),
            **_NO_LEASE,
        )
        .returning(jobs)
    )


def finish(connection: Connection, now: Now, lease: Lease, image: Image, timings: Timings) -> Job | None:
    """A cancellation that came too late to stop the image does not throw it away."""
    made = {
        "path": image.path,
        "sha256": image.sha256,
        "bytes": image.bytes,
        "media_type": image.media_type,
        "suspicion": image.suspicion or None,
        "gpu_ms": round(timings.gpu * 1000),
    }
    row = connection.execute(_finished(now), {**made, **_named(lease)}).one_or_none()
    if row is None:
        return None
    closed = _close(
        connection,
        lease.job_id,
        lease.attempt,
        AttemptEnd.FINISHED,
        row.finished_at,
        timings=timings.model_dump_json(),
    )
    key_rows.use(connection, row.api_key_id, row.finished_at, row.pixels, timings)
    sum_rows.add(connection, closed + sum_rows.job_ended(row, lease.worker, timings))
    return changed(connection, row)


def end_attempt(connection: Connection, now: Now, lease: Lease, end: AttemptEnd, detail: str) -> Job | None:
    crashed_on = _crashed_on(connection, lease.job_id)
    if end in CRASHES:
        crashed_on = [*crashed_on, lease.worker]
    match after(end, detail, crashed_on):
        case Requeue():
            values = _requeued(now)
        case Cancel():
            values = {"state": JobState.CANCELLED, "finished_at": now, **_NO_LEASE}
        case Fail(error):
            values = _failed(now, error)
        case unreachable:
            assert_never(unreachable)
    row = connection.execute(
        update(jobs).where(_HELD).values(values).returning(jobs, now.label("ended_at")), _named(lease)
    ).one_or_none()
    if row is None:
        return None
    closed = _close(connection, lease.job_id, lease.attempt, end, row.ended_at, detail=detail)
    if end in FAULTS:
        worker_rows.judge(connection, lease.worker)
    sum_rows.add(connection, closed + sum_rows.job_ended(row))
    return changed(connection, row)


def blame(connection: Connection, now: Now, lease: Lease, detail: str) -> Job | None:
    """A lost attempt turns out to have been a death of its worker. The job, if that ends it: one that is at work
    elsewhere meanwhile may still show that it was not to blame."""
    row = connection.execute(
        update(attempts)
        .where(
            attempts.c.job_id == lease.job_id,
            attempts.c.attempt == lease.attempt,
            attempts.c.worker == lease.worker,
            attempts.c.end.in_((AttemptEnd.LOST, AttemptEnd.EXPIRED)),
        )
        .values(end=AttemptEnd.DIED, detail=detail)
        .returning(attempts.c.pool)
    ).one_or_none()
    if row is None:
        return None
    sum_rows.add(connection, sum_rows.attempts_ended([row.pool], AttemptEnd.DIED))
    worker_rows.judge(connection, lease.worker)
    match after(AttemptEnd.DIED, detail, _crashed_on(connection, lease.job_id)):
        case Fail(error):
            failed = connection.execute(
                update(jobs)
                .where(jobs.c.id == lease.job_id, jobs.c.state == JobState.QUEUED)
                .values(_failed(now, error))
                .returning(jobs)
            ).one_or_none()
            return None if failed is None else changed(connection, failed)
        case _:
            return None


def _crashed_on(connection: Connection, of_job: str) -> Sequence[str]:
    ends = select(attempts.c.worker).where(attempts.c.job_id == of_job, attempts.c.end.in_(CRASHES))
    return connection.scalars(ends.order_by(attempts.c.attempt)).all()


def sweep(connection: Connection, now: Now) -> Sequence[Job]:
    rows = connection.execute(
        update(jobs)
        .where(jobs.c.state == JobState.RUNNING, jobs.c.lease_expires_at <= now)
        .values(_requeued(now))
        .returning(jobs, now.label("ended_at"))
    ).all()
    for row in rows:
        said = "nobody renewed the lease"
        closed = _close(connection, row.id, row.attempt, AttemptEnd.EXPIRED, row.ended_at, detail=said)
        sum_rows.add(connection, closed)
    return [changed(connection, row) for row in rows]


def shorten(connection: Connection, now: Now, ttl_ms: int) -> int:
    # Twice: a lease that was given since the statement's clock was read is well.
    later = jobs.c.lease_expires_at > now + literal(2 * ttl_ms, BigInteger())
    return connection.execute(
        update(jobs)
        .where(jobs.c.state == JobState.RUNNING, later)
        .values(lease_expires_at=now + literal(ttl_ms, BigInteger()))
    ).rowcount


def take_up(connection: Connection, now: Now, driver: str, ttl_ms: int) -> Sequence[Lease]:
    rows = connection.execute(
        update(jobs)
        .where(jobs.c.state == JobState.RUNNING, jobs.c.driver == driver)
        .values(lease_expires_at=now + literal(ttl_ms, BigInteger()))
        .returning(jobs)
    )
    return [lease_of(row) for row in sorted(rows, key=lambda row: (row.created_at, row.id))]


def _named(lease: Lease) -> dict[str, object]:
    return {"leased_job": lease.job_id, "leased_attempt": lease.attempt, "leased_worker": lease.worker}


def _requeued(now: Now) -> dict[str, Any]:
    """Back at its old place in the queue, unless its owner has asked to cancel it meanwhile."""
    asked = jobs.c.cancel_requested == true()
    return {
        "state": case((asked, JobState.CANCELLED), else_=JobState.QUEUED),
        "finished_at": case((asked, now), else_=null()),
        **_NO_LEASE,
    }


def _failed(now: Now, error: JobError) -> dict[str, Any]:
    return {
        "state": JobState.FAILED,
        "finished_at": now,
        "error_type": error.type,
        "error_detail": error.detail,
        **_NO_LEASE,
    }


def _close(
    connection: Connection,
    of_job: str,
    attempt: int,
    end: AttemptEnd,
    at: int,
    *,
    detail: str | None = None,
    timings: str | None = None,
) -> list[sum_rows.Line]:
    """What is to be added up for it."""
    closed = {"of_job": of_job, "of_attempt": attempt, "how": end, "at": at, "said": detail, "took": timings}
    return sum_rows.attempts_ended(connection.scalars(_CLOSED, closed), end)


def lease_of(row: Row[Any]) -> Lease:
    """Of a row of the jobs that run."""
    return Lease(job(row), row.worker, row.lease_expires_at)
