"""Jobs, attempts and leases: transactions of the store, as plain functions of a connection.

Every change to a job that runs is one UPDATE guarded by `_held`: it names the attempt and its worker and
wants the lease unexpired, so whoever comes late changes nothing. `now` is always the store's clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    and_,
    case,
    func,
    insert,
    null,
    select,
    true,
    update,
)

from router.contract import JobState
from router.ids import job_id
from router.jobs import CRASHES, FAULTS, AttemptEnd, Cancel, Fail, Image, Job, JobError, Lease, Requeue, after
from router.store import Renewal, worker_rows
from router.store.tables import attempts, jobs, workers
from worker.contract import GenerationRequest, Timings

Now = ColumnElement[int]


def add(
    connection: Connection, now: Now, entropy: bytes, api_key_id: str, pool: str, request: GenerationRequest
) -> Job:
    at = connection.execute(select(now)).scalar_one()
    statement = insert(jobs).values(
        id=job_id(at, entropy),
        api_key_id=api_key_id,
        pool=pool,
        state=JobState.QUEUED,
        request=request.model_dump_json(),
        cancel_requested=False,
        attempt=0,
        created_at=at,
    )
    return _job(connection.execute(statement.returning(jobs)).one())


def find(connection: Connection, wanted: str) -> Job | None:
    row = connection.execute(select(jobs).where(jobs.c.id == wanted)).one_or_none()
    return None if row is None else _job(row)


def cancel(connection: Connection, now: Now, wanted: str) -> Job | None:
    """Queued ends here; running is marked, and its driver learns it at the next renewal."""
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == wanted, jobs.c.state == JobState.QUEUED)
        .values(state=JobState.CANCELLED, finished_at=now)
        .returning(jobs)
    ).one_or_none()
    if row is not None:
        return _job(row)
    connection.execute(
        update(jobs).where(jobs.c.id == wanted, jobs.c.state == JobState.RUNNING).values(cancel_requested=True)
    )
    return None


def lease_next(connection: Connection, now: Now, worker: str, ttl_ms: int, places: int | None) -> Lease | None:
    if places is not None and not _has_room(connection, now, worker, places):
        return None
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == _next_for(worker), jobs.c.state == JobState.QUEUED)
        .values(
            state=JobState.RUNNING,
            attempt=jobs.c.attempt + 1,
            worker=worker,
            lease_expires_at=now + ttl_ms,
            started_at=func.coalesce(jobs.c.started_at, now),
        )
        .returning(jobs, now.label("leased_at"))
    ).one_or_none()
    if row is None:
        return None
    connection.execute(
        insert(attempts).values(
            job_id=row.id, attempt=row.attempt, worker=worker, pool=row.pool, started_at=row.leased_at
        )
    )
    return _lease(row)


def _has_room(connection: Connection, now: Now, worker: str, places: int) -> bool:
    """Whether the worker holds fewer leases than that. Its row is locked: of two who ask, one sees the other's."""
    connection.execute(select(workers.c.name).where(workers.c.name == worker).with_for_update())
    held = select(func.count()).where(
        jobs.c.state == JobState.RUNNING, jobs.c.worker == worker, jobs.c.lease_expires_at > now
    )
    return connection.execute(held).scalar_one() < places


def _next_for(worker: str) -> ScalarSelect[str]:
    """Which job `worker` gets next: the oldest of its pool.

    The one place that chooses; fairness between keys and priorities belong here.
    """
    return (
        select(jobs.c.id)
        .join(
            workers,
            and_(
                workers.c.pool == jobs.c.pool,
                workers.c.name == worker,
                ~workers.c.draining,
                workers.c.quarantine_cause.is_(None),
            ),
        )
        .where(jobs.c.state == JobState.QUEUED)
        .order_by(jobs.c.created_at, jobs.c.id)
        .limit(1)
        # Postgres: two routers choose different jobs instead of waiting for one another. SQLite has one writer.
        .with_for_update(of=jobs, skip_locked=True)
        .scalar_subquery()
    )


def renew(connection: Connection, now: Now, lease: Lease, ttl_ms: int) -> Renewal:
    cancel_requested = connection.execute(
        update(jobs).where(_held(now, lease)).values(lease_expires_at=now + ttl_ms).returning(jobs.c.cancel_requested)
    ).scalar_one_or_none()
    if cancel_requested is None:
        return Renewal.LOST
    return Renewal.CANCEL if cancel_requested else Renewal.HELD


def finish(connection: Connection, now: Now, lease: Lease, image: Image, timings: Timings) -> Job | None:
    """A cancellation that came too late to stop the image does not throw it away."""
    row = connection.execute(
        update(jobs)
        .where(_held(now, lease))
        .values(
            state=JobState.SUCCEEDED,
            finished_at=now,
            image_path=image.path,
            image_sha256=image.sha256,
            image_bytes=image.bytes,
            image_media_type=image.media_type,
            **_NO_LEASE,
        )
        .returning(jobs)
    ).one_or_none()
    if row is None:
        return None
    _close(
        connection,
        lease.job_id,
        lease.attempt,
        AttemptEnd.FINISHED,
        row.finished_at,
        timings=timings.model_dump_json(),
    )
    return _job(row)


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
        update(jobs).where(_held(now, lease)).values(values).returning(jobs, now.label("ended_at"))
    ).one_or_none()
    if row is None:
        return None
    _close(connection, lease.job_id, lease.attempt, end, row.ended_at, detail=detail)
    if end in FAULTS:
        worker_rows.judge(connection, lease.worker)
    return _job(row)


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
        .returning(attempts.c.job_id)
    ).one_or_none()
    if row is None:
        return None
    worker_rows.judge(connection, lease.worker)
    match after(AttemptEnd.DIED, detail, _crashed_on(connection, lease.job_id)):
        case Fail(error):
            failed = connection.execute(
                update(jobs)
                .where(jobs.c.id == lease.job_id, jobs.c.state == JobState.QUEUED)
                .values(_failed(now, error))
                .returning(jobs)
            ).one_or_none()
            return None if failed is None else _job(failed)
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
        _close(connection, row.id, row.attempt, AttemptEnd.EXPIRED, row.ended_at, detail="nobody renewed the lease")
    return [_job(row) for row in rows]


def held_leases(connection: Connection, now: Now) -> Sequence[Lease]:
    unexpired = select(jobs).where(jobs.c.state == JobState.RUNNING, jobs.c.lease_expires_at > now)
    return [_lease(row) for row in connection.execute(unexpired.order_by(jobs.c.created_at, jobs.c.id))]


def counts(connection: Connection) -> Mapping[str, Mapping[JobState, int]]:
    found: defaultdict[str, dict[JobState, int]] = defaultdict(dict)
    counted = select(jobs.c.pool, jobs.c.state, func.count()).group_by(jobs.c.pool, jobs.c.state)
    for pool, state, count in connection.execute(counted):
        found[pool][state] = count
    return dict(found)


def attempt_counts(connection: Connection) -> Mapping[str, Mapping[AttemptEnd, int]]:
    found: defaultdict[str, dict[AttemptEnd, int]] = defaultdict(dict)
    ended = select(attempts.c.pool, attempts.c.end, func.count()).where(attempts.c.end.is_not(None))
    for pool, end, count in connection.execute(ended.group_by(attempts.c.pool, attempts.c.end)):
        found[pool][end] = count
    return dict(found)


def queued(connection: Connection, pool: str) -> int:
    waiting = select(func.count()).where(jobs.c.pool == pool, jobs.c.state == JobState.QUEUED)
    return connection.execute(waiting).scalar_one()


_NO_LEASE = {"worker": null(), "lease_expires_at": null()}


def _held(now: Now, lease: Lease) -> ColumnElement[bool]:
    """The guard: this attempt still has the right to finish its job."""
    return and_(
        jobs.c.id == lease.job_id,
        jobs.c.state == JobState.RUNNING,
        jobs.c.attempt == lease.attempt,
        jobs.c.worker == lease.worker,
        jobs.c.lease_expires_at > now,
    )


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
) -> None:
    connection.execute(
        update(attempts)
        .where(attempts.c.job_id == of_job, attempts.c.attempt == attempt)
        .values(end=end, ended_at=at, detail=detail, timings=timings)
    )


def _job(row: Row[Any]) -> Job:
    image = None
    if row.image_path is not None:
        image = Image(row.image_path, row.image_sha256, row.image_bytes, row.image_media_type)
    return Job(
        id=row.id,
        api_key_id=row.api_key_id,
        pool=row.pool,
        state=row.state,
        request=GenerationRequest.model_validate_json(row.request),
        attempt=row.attempt,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        image=image,
        error=None if row.error_type is None else JobError(row.error_type, row.error_detail),
    )


def _lease(row: Row[Any]) -> Lease:
    return Lease(
        job_id=row.id,
        attempt=row.attempt,
        worker=row.worker,
        pool=row.pool,
        expires_at=row.lease_expires_at,
        request=GenerationRequest.model_validate_json(row.request),
    )
