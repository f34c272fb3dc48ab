"""Fronts, and what they wait for: transactions of the store, as plain functions of a connection.

Everybody locks a repeatable request's row before a share in it, so no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, select, text, update

from router.fronts import Settled
from router.jobs import Job
from router.store import job_rows
from router.store.clock import Clock
from router.store.database import Database
from router.store.front_tables import fronts, waits
from router.store.job_rows import WAITING, Now
from router.store.tables import idempotency, jobs

_BEAT = text(
    "INSERT INTO fronts (id, beats) VALUES (:front, :beats) ON CONFLICT (id) DO UPDATE SET beats = excluded.beats"
)
_WAITS = text(
    "INSERT INTO waits (api_key_id, name, front, count) VALUES (:key, :name, :front, 1) "
    "ON CONFLICT (api_key_id, name, front) DO UPDATE SET count = waits.count + 1"
)


class SqlFronts:
    """`router.fronts.Fronts` on the store's database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def beat(self, front: str, beats: int) -> None:
        await self._database.write_unsynced(_beat, front, beats)

    async def beats(self) -> Mapping[str, int]:
        return await self._database.read(_every)

    async def settle(self, front: str, beats: int, limit: int, *, cancel_repeatable: bool) -> Settled:
        return await self._database.write(
            _settle, self._clock(), front, beats, limit, cancel_repeatable=cancel_repeatable
        )


def wait(connection: Connection, api_key_id: str, name: str, front: str) -> None:
    """One more open request of the front waits for the repeatable request's jobs."""
    connection.execute(_WAITS, {"key": api_key_id, "name": name, "front": front})


def leave(connection: Connection, now: Now, api_key_id: str, name: str, front: str, *, cancel: bool) -> Sequence[Job]:
    """One fewer; nothing, if the front's share was taken off already."""
    share = (waits.c.api_key_id == api_key_id, waits.c.name == name, waits.c.front == front)
    if not _locked(connection, api_key_id, name):
        return ()
    left = update(waits).where(*share, waits.c.count > 0).values(count=waits.c.count - 1).returning(waits.c.count)
    if connection.execute(left).one_or_none() is None:
        return ()
    return _fewer(connection, now, api_key_id, name, 1, cancel=cancel)


def _beat(connection: Connection, front: str, beats: int) -> None:
    connection.execute(_BEAT, {"front": front, "beats": beats})


def _every(connection: Connection) -> Mapping[str, int]:
    return {row.id: row.beats for row in connection.execute(select(fronts))}


def _settle(
    connection: Connection, now: Now, front: str, beats: int, limit: int, *, cancel_repeatable: bool
) -> Settled:
    mine = (fronts.c.id == front, fronts.c.beats == beats)
    # Of several who settle it, one does; and a front that beats waits here, and is made again after the last piece.
    if connection.execute(select(fronts.c.id).where(*mine).with_for_update()).one_or_none() is None:
        return Settled((), done=True)
    unstarted = select(jobs.c.id).where(WAITING, jobs.c.front == front).limit(limit)
    ids = connection.scalars(unstarted).all()
    cancelled = [job for name in ids if (job := job_rows.cancel_unstarted(connection, now, name)) is not None]
    if len(ids) == limit:
        return Settled(cancelled, done=False)
    of_front = select(waits.c.api_key_id, waits.c.name).where(waits.c.front == front)
    shares = connection.execute(of_front.order_by(waits.c.api_key_id, waits.c.name).limit(limit)).all()
    for key, name in shares:
        cancelled += _taken_off(connection, now, key, name, front, cancel=cancel_repeatable)
    if len(shares) == limit:
        return Settled(cancelled, done=False)
    connection.execute(delete(fronts).where(*mine))
    return Settled(cancelled, done=True)


def _taken_off(
    connection: Connection, now: Now, api_key_id: str, name: str, front: str, *, cancel: bool
) -> Sequence[Job]:
    if not _locked(connection, api_key_id, name):
        return ()
    share = (waits.c.api_key_id == api_key_id, waits.c.name == name, waits.c.front == front)
    count = connection.execute(delete(waits).where(*share).returning(waits.c.count)).scalar_one_or_none()
    return _fewer(connection, now, api_key_id, name, count, cancel=cancel) if count else ()


def _locked(connection: Connection, api_key_id: str, name: str) -> bool:
    mine = (idempotency.c.api_key_id == api_key_id, idempotency.c.name == name)
    return connection.execute(select(idempotency.c.name).where(*mine).with_for_update()).one_or_none() is not None


def _fewer(connection: Connection, now: Now, api_key_id: str, name: str, count: int, *, cancel: bool) -> Sequence[Job]:
    """So many wait no more. If nobody is left, what has not started is cancelled, and the name is free again."""
    mine = (idempotency.c.api_key_id == api_key_id, idempotency.c.name == name)
    row = connection.execute(
        update(idempotency)
        .where(*mine, idempotency.c.waiting >= count)
        .values(waiting=idempotency.c.waiting - count)
        .returning(idempotency.c.waiting, idempotency.c.job_ids)
    ).one_or_none()
    if row is None or row.waiting or not cancel:
        return ()
    cancelled = [
        job for job_id in row.job_ids.split() if (job := job_rows.cancel_unstarted(connection, now, job_id)) is not None
    ]
    if cancelled:
        connection.execute(delete(idempotency).where(*mine))  # and the shares in it
    return cancelled
