"""What drivers believe of workers: transactions of the store, as plain functions of a connection.

Routers that drive nothing themselves know their workers from here. One row a driver and worker, written anew by
its driver every few seconds; a driver that is gone leaves rows that soon are too old to be believed.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, insert, or_, select

from router.contract import WorkerView
from router.store.tables import beliefs


def report(
    connection: Connection, now: ColumnElement[int], driver: str, views: Sequence[WorkerView], keep_ms: int
) -> None:
    at = connection.execute(select(now)).scalar_one()
    connection.execute(delete(beliefs).where(or_(beliefs.c.driver == driver, beliefs.c.seen_at <= at - keep_ms)))
    rows = [{"driver": driver, "worker": view.name, "seen_at": at, "view": view.model_dump_json()} for view in views]
    if rows:
        connection.execute(insert(beliefs), rows)


def every(connection: Connection, now: ColumnElement[int], within_ms: int) -> Sequence[WorkerView]:
    fresh = select(beliefs.c.view).where(beliefs.c.seen_at > now - within_ms)
    # A driver of another release may say more of a worker than this one knows.
    said = connection.scalars(fresh.order_by(beliefs.c.worker, beliefs.c.driver))
    return [WorkerView.model_validate_json(view, extra="ignore") for view in said]
