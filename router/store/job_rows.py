"""Jobs as rows: transactions of the store, as plain functions of a connection.

What becomes of one that runs is `router.store.lease_rows`', which is leased next `router.store.choice_rows`'. `now` is
always the store's clock. What every job comes through is put together once, with names for what changes (see
`router.store.choice_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, insert, literal_column, select, update

from router.choice import Lane, Terms, pixels_of, work_of
from router.contract import JobState
from router.ids import ENTROPY_BYTES, job_id
from router.jobs import DEADLINE_PASSED, PATIENCE_MS, Image, Job, JobError, NewJob, Place
from router.store import JobFilter, webhook_rows
from router.store.tables import jobs
from worker.contract import GenerationRequest

Now = ColumnElement[int]

CHUNK = 500
"""Rows that are written by one call: Python prepares them while the event loop stands still."""
WAITING = jobs.c.state == literal_column("'queued'")
NOT_WAITING = jobs.c.state != literal_column("'queued'")
RUNNING = jobs.c.state == literal_column("'running'")
"""As literals: an index of what waits, or runs, is used only where the statement itself says so."""

_FIND = select(jobs).where(jobs.c.id == bindparam("wanted"))
_FIND_ALL = select(jobs).where(jobs.c.id.in_(bindparam("wanted", expanding=True)))
_STANDINGS = select(jobs.c.id, jobs.c.state, jobs.c.attempt).where(jobs.c.id.in_(bindparam("wanted", expanding=True)))
_ADDED = insert(jobs)


def add(
    connection: Connection,
    now: Now,
    entropies: Sequence[bytes],
    api_key_id: str,
    pool: str,
    wanted: Sequence[NewJob],
    front: str | None = None,
) -> Sequence[str]:
    """The ids of the new jobs, in their order. All of them or none. `front` if they are for its open request alone."""
    at = connection.execute(select(now)).scalar_one()
    ids = sorted(job_id(at, entropy) for entropy in entropies)  # of one millisecond, and yet in their order
    for i in range(0, len(ids), CHUNK):
        some = zip(ids[i : i + CHUNK], wanted[i : i + CHUNK], strict=True)
        connection.execute(_ADDED, [_row(name, at, api_key_id, pool, new, front) for name, new in some])
    return ids


def _row(name: str, at: int, api_key_id: str, pool: str, new: NewJob, front: str | None) -> dict[str, Any]:
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
        "front": front,
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
    return None if row is None else changed(connection, row)


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
    return [changed(connection, row) for row in rows]


def give_up(
    connection: Connection, now: Now, pool: str, lane: Lane, over: int, error: JobError, limit: int
) -> Sequence[Job]:
    """End jobs of batches that wait in the lane and have more pixels than `over`, `limit` at most."""
    vain = select(jobs.c.id).where(
        WAITING, jobs.c.pool == pool, jobs.c.lane == lane.name, jobs.c.pixels > over, jobs.c.batch_id.is_not(None)
    )
    ids = connection.scalars(vain.limit(limit).with_for_update(skip_locked=True)).all()
    ended = {"finished_at": now, "error_type": error.type, "error_detail": error.detail}
    rows = connection.execute(
        update(jobs).where(jobs.c.id.in_(ids), WAITING).values(state=JobState.FAILED, **ended).returning(jobs)
    )
    return [changed(connection, row) for row in rows]


def changed(connection: Connection, row: Row[Any]) -> Job:
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
