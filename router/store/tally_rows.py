"""Counts of jobs and attempts, and how long they took: transactions of the store, as functions of a connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, func, select

from router.contract import JobState
from router.ids import made_at
from router.jobs import AttemptEnd
from router.pace import Service
from router.store.job_rows import NOT_WAITING, WAITING
from router.store.tables import attempts, jobs
from worker.contract import Timings


def counts(connection: Connection) -> Mapping[str, Mapping[JobState, int]]:
    found: defaultdict[str, dict[JobState, int]] = defaultdict(dict)
    # Each half along an index that holds just that.
    for those in (WAITING, NOT_WAITING):
        counted = select(jobs.c.pool, jobs.c.state, func.count()).where(those)
        for pool, state, count in connection.execute(counted.group_by(jobs.c.pool, jobs.c.state)):
            found[pool][state] = count
    return dict(found)


def attempt_counts(connection: Connection) -> Mapping[str, Mapping[AttemptEnd, int]]:
    found: defaultdict[str, dict[AttemptEnd, int]] = defaultdict(dict)
    ended = select(attempts.c.pool, attempts.c.end, func.count()).where(attempts.c.end.is_not(None))
    for pool, end, count in connection.execute(ended.group_by(attempts.c.pool, attempts.c.end)):
        found[pool][end] = count
    return dict(found)


def recent_services(connection: Connection, pool: str, limit: int) -> Sequence[Service]:
    """By the workers' own clocks, and without the time in which an image waited for the one before it."""
    newest = (
        select(jobs.c.work, attempts.c.timings)
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(attempts.c.pool == pool, attempts.c.end == AttemptEnd.FINISHED)
        .order_by(attempts.c.ended_at.desc())
        .limit(limit)
    )
    found = [(work, Timings.model_validate_json(timings)) for work, timings in connection.execute(newest) if work]
    return [Service(work, timings.total - timings.queued) for work, timings in found]


def oldest_waiting_ms(connection: Connection, now: ColumnElement[int]) -> Mapping[str, int]:
    # By the id, which begins with the time: the index of what waits holds it, and not when it was made.
    oldest = select(jobs.c.pool, func.min(jobs.c.id)).where(WAITING).group_by(jobs.c.pool)
    at = connection.execute(select(now)).scalar_one()
    return {pool: max(0, at - made_at(first)) for pool, first in connection.execute(oldest)}


def queued(connection: Connection, pool: str) -> int:
    waiting = select(func.count()).where(jobs.c.pool == pool, WAITING)
    return connection.execute(waiting).scalar_one()
