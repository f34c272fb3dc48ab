"""Registered workers: transactions of the store, as plain functions of a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, insert, null, select, update

from router.choice import Capability
from router.jobs import TELLING, AttemptEnd, Quarantine, quarantine_after
from router.store import RegisteredWorker
from router.store.tables import attempts, workers


def put(connection: Connection, name: str, url: str, token: str, pool: str) -> RegisteredWorker:
    described: dict[str, object] = {"url": url, "token": token, "pool": pool, "draining": False}
    known = find(connection, name)
    if known is not None and (known.url, known.token) != (url, token):
        described |= {"quarantine_cause": None, "quarantine_reason": None}  # another worker, under the same name
    changed = connection.execute(update(workers).where(workers.c.name == name).values(described))
    if changed.rowcount == 0:
        connection.execute(insert(workers).values(name=name, **described))
    return _worker(connection.execute(_selected().where(workers.c.name == name)).one())


def every(connection: Connection) -> Sequence[RegisteredWorker]:
    return [_worker(row) for row in connection.execute(_selected().order_by(workers.c.name))]


def describe(connection: Connection, name: str, capability: Capability) -> None:
    connection.execute(
        update(workers)
        .where(workers.c.name == name)
        .values(tier=capability.tier, model=capability.model, max_pixels=capability.max_pixels)
    )


def drain(connection: Connection, name: str) -> RegisteredWorker | None:
    connection.execute(update(workers).where(workers.c.name == name).values(draining=True))
    return find(connection, name)


def remove(connection: Connection, name: str) -> None:
    connection.execute(delete(workers).where(workers.c.name == name))


def judge(connection: Connection, name: str) -> None:
    """Put the worker in quarantine if its newest attempts ask for that; one that is there already stays as it is."""
    told = (
        select(attempts.c.end, attempts.c.job_id, attempts.c.detail)
        .join(workers, workers.c.name == attempts.c.worker)
        .where(workers.c.name == name, attempts.c.end.in_(TELLING), attempts.c.ended_at > workers.c.trusted_since)
        .order_by(attempts.c.ended_at.desc(), attempts.c.job_id.desc())
        .limit(2)
    )
    found = quarantine_after([(end, job, detail or "") for end, job, detail in connection.execute(told)])
    if found is not None:
        connection.execute(
            update(workers)
            .where(workers.c.name == name, workers.c.quarantine_cause.is_(None))
            .values(quarantine_cause=found.cause, quarantine_reason=found.reason)
        )


def release(connection: Connection, now: ColumnElement[int], name: str) -> RegisteredWorker | None:
    connection.execute(
        update(workers)
        .where(workers.c.name == name)
        .values(quarantine_cause=null(), quarantine_reason=null(), trusted_since=now)
    )
    return find(connection, name)


def find(connection: Connection, name: str) -> RegisteredWorker | None:
    row = connection.execute(_selected().where(workers.c.name == name)).one_or_none()
    return None if row is None else _worker(row)


def _selected() -> Select[Any]:
    finished = (
        select(func.count())
        .where(attempts.c.worker == workers.c.name, attempts.c.end == AttemptEnd.FINISHED)
        .scalar_subquery()
    )
    return select(workers, finished.label("finished"))


def _worker(row: Row[Any]) -> RegisteredWorker:
    cause = row.quarantine_cause
    return RegisteredWorker(
        name=row.name,
        url=row.url,
        token=row.token,
        pool=row.pool,
        draining=row.draining,
        finished=row.finished,
        quarantine=None if cause is None else Quarantine(cause, row.quarantine_reason),
        capability=None if row.model is None else Capability(row.tier, row.model, row.max_pixels),
    )
