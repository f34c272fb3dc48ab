"""Jobs, attempts and leases: transactions of the store, as plain functions of a connection. Which job is leased
next is `router.store.choice_rows`'.

Every change to a job that runs is one UPDATE guarded by `_held`: it names the attempt and its worker and
wants the lease unexpired, so whoever comes late changes nothing. `now` is always the store's clock. What every job
comes through is put together once, with names for what changes (see `router.store.choice_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, assert_never

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from router.choice import Lane, Terms, pixels_of, work_of
from router.contract import JobState
from router.ids import ENTROPY_BYTES, job_id
from router.jobs import (
    CRASHES,
    DEADLINE_PASSED,
    FAULTS,
    PATIENCE_MS,
    AttemptEnd,
    Cancel,
    Fail,
    Image,
    Job,
    JobError,
    Lease,
    NewJob,
    Place,
    Requeue,
    after,
)
from router.store import JobFilter, Renewal, key_rows, sum_rows, webhook_rows, worker_rows
from router.store.tables import attempts, jobs
from worker.contract import GenerationRequest, Timings

Now = ColumnElement[int]


CHUNK = 500
"""Rows that are written by one call: Python prepares them while the event loop stands still."""
BUILT = 8
"""Statements of one kind that are kept: one for each clock, and there is one clock."""

_FIND = select(jobs).where(jobs.c.id == bindparam("wanted"))
_FIND_ALL = select(jobs).where(jobs.c.id.in_(bindparam("wanted", expanding=True)))
_STANDINGS = select(jobs.c.id, jobs.c.state, jobs.c.attempt).where(jobs.c.id.in_(bindparam("wanted", expanding=True)))
_ADDED = insert(jobs)
_CLOSED = (
    update(attempts)
    .where(attempts.c.job_id == bindparam("of_job"), attempts.c.attempt == bindparam("of_attempt"))
    .values(end=bindparam("how"), ended_at=bindparam("at"), detail=bindparam("said"), timings=bindparam("took"))
    .returning(attempts.c.pool)
)


def add(
    connection: Connection,
    now: Now,
    entropies: Sequence[bytes],
    api_key_id: str,
    pool: str,
    wanted: Sequence[NewJob],
) -> Sequence[str]:
    """The ids of the new jobs, in their order. All of them or none."""
    at = connection.execute(select(now)).scalar_one()
    ids = sorted(job_id(at, entropy) for entropy in entropies)  # of one millisecond, and yet in their order
    for i in range(0, len(ids), CHUNK):
        some = zip(ids[i : i + CHUNK], wanted[i : i + CHUNK], strict=True)
        connection.execute(_ADDED, [_row(name, at, api_key_id, pool, new) for name, new in some])
    return ids


def _row(name: str, at: int, api_key_id: str, pool: str, new: NewJob) -> dict[str, Any]:
    terms = new.terms
    return {
        "id": name,
        "api_key_id": api_key_id,
        "pool": pool,
        "state": JobState.QUEUED,
        "request": new.request.model_dump_json(),
        "cancel_requested": False,
        "attempt": 0,
        "created_at": at,
        "precedence": -terms.priority,
        "deadline": terms.deadline,
        "tier": terms.tier,
        "model": terms.model,
        "pixels": pixels_of(new.request),
        "work": work_of(new.request),
        "lane": Lane.of(api_key_id, new.request, terms).name,
        "due_at": at + PATIENCE_MS if terms.deadline is None else terms.deadline,
        "webhook": new.webhook,
        "retry_of": new.retry_of,
        "batch_id": new.place and new.place.batch_id,
        "batch_line": new.place and new.place.line,
    }


def find(connection: Connection, wanted: str) -> Job | None:
    row = connection.execute(_FIND, {"wanted": wanted}).one_or_none()
    return None if row is None else job(row)


def find_all(connection: Connection, wanted: Sequence[str]) -> Sequence[Job]:
    found = {}
    for i in range(0, len(wanted), CHUNK):
        for row in connection.execute(_FIND_ALL, {"wanted": wanted[i : i + CHUNK]}):
            found[row.id] = job(row)
    return [found[name] for name in wanted if name in found]


def listed(connection: Connection, api_key_id: str, wanted: JobFilter, before: str | None, limit: int) -> Sequence[Job]:
    found = select(jobs).where(jobs.c.api_key_id == api_key_id).order_by(jobs.c.id.desc()).limit(limit)
    if before is not None:
        found = found.where(jobs.c.id < before)
    # A job's id begins with when it was made, so the index that keeps the order knows the time too.
    if wanted.created_before is not None:
        found = found.where(jobs.c.id < job_id(wanted.created_before, bytes(ENTROPY_BYTES)))
    if wanted.created_after is not None:
        found = found.where(jobs.c.id >= job_id(wanted.created_after, bytes(ENTROPY_BYTES)))
    if wanted.state is not None:
        found = found.where(jobs.c.state == wanted.state)
    if wanted.pool is not None:
        found = found.where(jobs.c.pool == wanted.pool)
    if wanted.batch_id is not None:
        found = found.where(jobs.c.batch_id == wanted.batch_id)
    return [job(row) for row in connection.execute(found)]


def standings(connection: Connection, wanted: Sequence[str]) -> Mapping[str, tuple[JobState, int]]:
    found = connection.execute(_STANDINGS, {"wanted": wanted})
    return {row.id: (row.state, row.attempt) for row in found}


def cancel(connection: Connection, now: Now, wanted: str) -> Job | None:
    """Queued ends here; running is marked, and its driver learns it at the next renewal."""
    cancelled = cancel_unstarted(connection, now, wanted)
    if cancelled is None:
        connection.execute(update(jobs).where(jobs.c.id == wanted, RUNNING).values(cancel_requested=True))
    return cancelled


def cancel_unstarted(connection: Connection, now: Now, wanted: str) -> Job | None:
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == wanted, jobs.c.state == JobState.QUEUED)
        .values(state=JobState.CANCELLED, finished_at=now)
        .returning(jobs)
    ).one_or_none()
    return None if row is None else _changed(connection, row)


@lru_cache(BUILT)
def _renewed(now: Now) -> ReturningUpdate[Any]:
    until = now + bindparam("ttl_ms", type_=BigInteger())
    return update(jobs).where(_held(now)).values(lease_expires_at=until).returning(jobs.c.cancel_requested)


def renew(connection: Connection, now: Now, lease: Lease, ttl_ms: int) -> Renewal:
    cancel_requested = connection.execute(_renewed(now), {"ttl_ms": ttl_ms, **_named(lease)}).scalar_one_or_none()
    if cancel_requested is None:
        return Renewal.LOST
    return Renewal.CANCEL if cancel_requested else Renewal.HELD


@lru_cache(BUILT)
def _finished(now: Now) -> ReturningUpdate[Any]:
    return (
        update(jobs)
        .where(_held(now))
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
    _close(
        connection,
        lease.job_id,
        lease.attempt,
        AttemptEnd.FINISHED,
        row.finished_at,
        timings=timings.model_dump_json(),
    )
    key_rows.use(connection, row.api_key_id, row.finished_at, row.pixels, timings)
    sum_rows.job_ended(connection, row, lease.worker, timings)
    return _changed(connection, row)


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
        update(jobs).where(_held(now)).values(values).returning(jobs, now.label("ended_at")), _named(lease)
    ).one_or_none()
    if row is None:
        return None
    _close(connection, lease.job_id, lease.attempt, end, row.ended_at, detail=detail)
    if end in FAULTS:
        worker_rows.judge(connection, lease.worker)
    sum_rows.job_ended(connection, row)
    return _changed(connection, row)


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
    sum_rows.attempt_ended(connection, row.pool, AttemptEnd.DIED)
    worker_rows.judge(connection, lease.worker)
    match after(AttemptEnd.DIED, detail, _crashed_on(connection, lease.job_id)):
        case Fail(error):
            failed = connection.execute(
                update(jobs)
                .where(jobs.c.id == lease.job_id, jobs.c.state == JobState.QUEUED)
                .values(_failed(now, error))
                .returning(jobs)
            ).one_or_none()
            return None if failed is None else _changed(connection, failed)
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
    return [_changed(connection, row) for row in rows]


def expire(connection: Connection, now: Now, limit: int) -> Sequence[Job]:
    """End what still waits at its deadline, `limit` jobs at most."""
    # Apart from the UPDATE: Postgres may carry a subquery's LIMIT out once for each row that it looks at.
    overdue = select(jobs.c.id).where(WAITING, jobs.c.deadline <= now).order_by(jobs.c.deadline).limit(limit)
    ids = connection.scalars(overdue.with_for_update(skip_locked=True)).all()
    rows = connection.execute(
        update(jobs)
        .where(jobs.c.id.in_(ids), WAITING)
        .values(
            state=JobState.EXPIRED,
            finished_at=now,
            error_type=DEADLINE_PASSED,
            error_detail="no worker was free for it before its deadline",
        )
        .returning(jobs)
    )
    return [_changed(connection, row) for row in rows]


def held_leases(connection: Connection, now: Now, driver: str) -> Sequence[Lease]:
    unexpired = select(jobs).where(
        jobs.c.state == JobState.RUNNING, jobs.c.lease_expires_at > now, jobs.c.driver == driver
    )
    return [lease_of(row) for row in connection.execute(unexpired.order_by(jobs.c.created_at, jobs.c.id))]


WAITING = jobs.c.state == literal_column("'queued'")
NOT_WAITING = jobs.c.state != literal_column("'queued'")
RUNNING = jobs.c.state == literal_column("'running'")
"""As literals: an index of what waits, or runs, is used only where the statement itself says so."""
_NO_LEASE = {"worker": null(), "driver": null(), "lease_expires_at": null()}


def _held(now: Now) -> ColumnElement[bool]:
    """The guard: the lease that is `_named` still has the right to finish its job."""
    return and_(
        jobs.c.id == bindparam("leased_job"),
        jobs.c.state == JobState.RUNNING,
        jobs.c.attempt == bindparam("leased_attempt"),
        jobs.c.worker == bindparam("leased_worker"),
        jobs.c.lease_expires_at > now,
    )


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
) -> None:
    closed = {"of_job": of_job, "of_attempt": attempt, "how": end, "at": at, "said": detail, "took": timings}
    pools = connection.scalars(_CLOSED, closed).all()
    for pool in pools:
        sum_rows.attempt_ended(connection, pool, end)


def _changed(connection: Connection, row: Row[Any]) -> Job:
    """The job as it is now. If that is its end, its owner will be told: promised in the same transaction."""
    found = job(row)
    if found.state.ended:
        webhook_rows.promise(connection, found)
    return found


def job(row: Row[Any]) -> Job:
    image = None
    if row.image_path is not None:
        image = Image(
            row.image_path, row.image_sha256, row.image_bytes, row.image_media_type, row.image_suspicion or ""
        )
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
        gpu_ms=row.image_gpu_ms,
        error=None if row.error_type is None else JobError(row.error_type, row.error_detail),
        terms=Terms(-row.precedence, row.deadline, row.tier, row.model),
        webhook=row.webhook,
        retry_of=row.retry_of,
        place=None if row.batch_id is None else Place(row.batch_id, row.batch_line),
    )


def lease_of(row: Row[Any]) -> Lease:
    return Lease(
        job_id=row.id,
        attempt=row.attempt,
        worker=row.worker,
        pool=row.pool,
        expires_at=row.lease_expires_at,
        request=GenerationRequest.model_validate_json(row.request),
    )
