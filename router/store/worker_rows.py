"""Registered workers: transactions of the store, as plain functions of a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from router.jobs import AttemptEnd
from router.store import RegisteredWorker
from router.store.tables import attempts, workers


def put(connection: Connection, name: str, url: str, token: str, pool: str) -> RegisteredWorker:
    described = {"url": url, "token": token, "pool": pool, "draining": False}
    changed = connection.execute(update(workers).where(workers.c.name == name).values(described))
    if changed.rowcount == 0:
        connection.execute(insert(workers).values(name=name, **described))
    return _worker(connection.execute(_selected().where(workers.c.name == name)).one())


def every(connection: Connection) -> Sequence[RegisteredWorker]:
    return [_worker(row) for row in connection.execute(_selected().order_by(workers.c.name))]


def drain(connection: Connection, name: str) -> RegisteredWorker | None:
    connection.execute(update(workers).where(workers.c.name == name).values(draining=True))
    row = connection.execute(_selected().where(workers.c.name == name)).one_or_none()
    return None if row is None else _worker(row)


def remove(connection: Connection, name: str) -> None:
    connection.execute(delete(workers).where(workers.c.name == name))


def _selected() -> Select[Any]:
    finished = (
        select(func.count())
        .where(attempts.c.worker == workers.c.name, attempts.c.end == AttemptEnd.FINISHED)
        .scalar_subquery()
    )
    return select(workers, finished.label("finished"))


def _worker(row: Row[Any]) -> RegisteredWorker:
    return RegisteredWorker(
        name=row.name, url=row.url, token=row.token, pool=row.pool, draining=row.draining, finished=row.finished
    )
