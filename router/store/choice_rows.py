"""The choice of the next job, and its lease: one transaction of the store, as a plain function of a connection.

`router.choice` decides; here is what it looks at, and the guards. Whoever leases a key's job in a pool holds that
key's turn there until the commit. Others who choose meanwhile pass to the next key, as they should: this one's
turn is being used. Nobody locks a table, a pool or a job that is not theirs.

Every job passes here, and putting a statement together takes SQLAlchemy longer than SQLite takes to run it: so they
are put together once, with names for what changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Select,
    Update,
    and_,
    bindparam,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from router.choice import Capability, Lane, Spill, fair_order
from router.contract import JobState
from router.jobs import Lease
from router.store.job_rows import RUNNING, WAITING, Now
from router.store.lease_rows import lease_of
from router.store.tables import api_keys, attempts, jobs, turns, workers


class Overtaken(Enum):
    """Another transaction was first; to be tried again in a new one, which sees what that has done."""

    TRY_AGAIN = auto()


@dataclass(frozen=True, slots=True)
class _Asking:
    """A worker that asks for a job of `pool`, of at most `max_work` if that is given."""

    worker: str
    driver: str
    capability: Capability
    pool: str
    ttl_ms: int
    max_work: int | None = None


BUILT = 64
"""Statements of one kind that are kept: for the database's one clock, and each number of lanes in use."""

_HELD = select(func.count()).where(RUNNING, jobs.c.worker == bindparam("worker")).scalar_subquery()
_USABLE = select(workers, _HELD.label("held")).where(
    workers.c.name == bindparam("worker"), ~workers.c.draining, workers.c.quarantine_cause.is_(None)
)
_NAMED = workers.c.name.in_(bindparam("names", expanding=True))
_WORKERS_LOCKED = select(workers.c.name).where(_NAMED).order_by(workers.c.name).with_for_update()
_HOLDS = select(jobs.c.id).where(RUNNING, jobs.c.worker == workers.c.name).exists()
_UNOCCUPIED = select(func.count()).where(_NAMED, ~workers.c.draining, workers.c.quarantine_cause.is_(None), ~_HOLDS)
_KEY_LOCKED = select(api_keys.c.id).where(api_keys.c.id == bindparam("key")).with_for_update(key_share=True)
_KEY_RUNS = select(func.count()).where(RUNNING, jobs.c.api_key_id == bindparam("key"))
_STANDING = (
    select(api_keys.c.id, api_keys.c.max_running, turns.c.turn)
    .outerjoin(turns, and_(turns.c.api_key_id == api_keys.c.id, turns.c.pool == bindparam("pool")))
    .where(api_keys.c.id.in_(bindparam("keys", expanding=True)))
)
_FIRST_TURN = text("INSERT INTO turns (pool, api_key_id, turn) VALUES (:pool, :key, 0) ON CONFLICT DO NOTHING")
_TURN = select(turns.c.turn).where(turns.c.pool == bindparam("in_pool"), turns.c.api_key_id == bindparam("key"))
_BEGUN = insert(attempts)
_TURN_AWAITED = _TURN.with_for_update()
_TURN_IF_FREE = _TURN.where(turns.c.turn == bindparam("seen")).with_for_update(skip_locked=True)


@lru_cache(1)
def _lanes() -> Select[str]:
    # ORDER BY and LIMIT, not min(): without statistics, Postgres walks through all that waits for a minimum.
    lanes = select(literal("").label("lane")).cte("lanes", recursive=True)
    following = (
        select(jobs.c.lane)
        .where(jobs.c.pool == bindparam("pool"), WAITING, jobs.c.lane > lanes.c.lane)
        .order_by(jobs.c.lane)
        .limit(1)
        .scalar_subquery()
    )
    every = lanes.union_all(select(following).where(lanes.c.lane.is_not(None)))
    return select(every.c.lane).where(every.c.lane > "")


@lru_cache(1)
def _turn_used() -> Update:
    of_pool = turns.alias()
    behind = select(func.coalesce(func.max(of_pool.c.turn), 0) + 1).where(of_pool.c.pool == bindparam("in_pool"))
    mine = (turns.c.pool == bindparam("in_pool"), turns.c.api_key_id == bindparam("key"))
    return update(turns).where(*mine).values(turn=behind.scalar_subquery())


@lru_cache(BUILT)
def _head(now: Now, lanes: int, *, pixels: bool, work: bool) -> Select[str]:
    """The first job of so many lanes (`lane0`, …) of the pool `of_pool`, of at most `max_pixels` and `max_work` if
    those count."""
    order = (jobs.c.precedence, jobs.c.due_at, jobs.c.id)
    possible = [jobs.c.pool == bindparam("of_pool"), WAITING, or_(jobs.c.deadline.is_(None), jobs.c.deadline > now)]
    if pixels:
        possible.append(jobs.c.pixels <= bindparam("max_pixels"))
    if work:
        possible.append(jobs.c.work <= bindparam("max_work"))
    heads = [
        select(jobs.c.id)
        .where(*possible, jobs.c.lane == bindparam(f"lane{number}"))
        .order_by(*order)
        .limit(1)
        .scalar_subquery()
        for number in range(lanes)
    ]
    return select(jobs.c.id).where(jobs.c.id.in_(heads)).order_by(*order).limit(1)


@lru_cache(BUILT)
def _leased(now: Now, lanes: int, *, pixels: bool, work: bool) -> ReturningUpdate[Any]:
    head = _head(now, lanes, pixels=pixels, work=work).scalar_subquery()
    return (
        update(jobs)
        .where(jobs.c.id == head, jobs.c.state == JobState.QUEUED)
        .values(
            state=JobState.RUNNING,
            attempt=jobs.c.attempt + 1,
            worker=bindparam("by_worker"),
            driver=bindparam("by_driver"),
            lease_expires_at=now + bindparam("ttl_ms", type_=BigInteger()),
            started_at=func.coalesce(jobs.c.started_at, now),
        )
        .returning(jobs, now.label("leased_at"))
    )


def lease_next(
    connection: Connection,
    now: Now,
    worker: str,
    ttl_ms: int,
    places: int | None,
    spills: Sequence[Spill],
    driver: str,
) -> Lease | Overtaken | None:
    # Of two who ask, one sees the other's lease: for one worker, and for two of which one must stay idle. In the order
    # of their names, and before any turn, so that nobody waits for one another.
    kept = {name for spill in spills if spill.idle_kept for name in spill.idle_others}
    if (places is not None or kept) and not _one_writer(connection):
        connection.execute(_WORKERS_LOCKED, {"names": sorted(kept | {worker})})
    row = connection.execute(_USABLE, {"worker": worker}).one_or_none()
    if row is None or (places is not None and row.held >= places):
        return None
    own = _Asking(worker, driver, Capability(row.tier, row.model, row.max_pixels), row.pool, ttl_ms)
    found = _lease_from(connection, now, own)
    for spill in spills:
        if found is None and _stays_served(connection, spill):
            found = _lease_from(connection, now, replace(own, pool=spill.pool, max_work=spill.max_work))
    return found


def _stays_served(connection: Connection, spill: Spill) -> bool:
    """Under the lock of those who have to stay idle."""
    if not spill.idle_kept:
        return True
    return connection.execute(_UNOCCUPIED, {"names": list(spill.idle_others)}).scalar_one() >= spill.idle_kept


def _lease_from(connection: Connection, now: Now, asking: _Asking) -> Lease | Overtaken | None:
    held: str | None = None
    while True:
        lanes = _possible_lanes(connection, asking)
        if not lanes:
            return None
        last, limits = _standing(connection, asking.pool, list(lanes))
        order = fair_order(lanes, last, {key for key in limits if _runs(connection, key) >= limits[key]})
        taken = []
        for key in order:
            if key == held or _take_turn(connection, asking.pool, key, last[key]):
                taken.append(key)
                if key in limits and not _may_run_one_more(connection, key, limits[key]):
                    continue
                found = _lease_head(connection, now, asking, lanes[key])
                if isinstance(found, Lease):
                    _use_turn(connection, asking.pool, key)
                if found is not None:
                    return found
        if len(taken) == len(order):
            return None
        if taken or held is not None:
            return Overtaken.TRY_AGAIN
        # Every key is in somebody's hands. Wait for one, and look anew: what was seen is old by then. Only who holds
        # no turn waits for one, so nobody waits for one another.
        held = order[0]
        _wait_for_turn(connection, asking.pool, held)


def _possible_lanes(connection: Connection, asking: _Asking) -> Mapping[str, list[Lane]]:
    """By key, those from which the worker could make something."""
    found: dict[str, list[Lane]] = {}
    for lane in waiting_lanes(connection, asking.pool):
        if lane.fits(asking.capability, asking.max_work):
            found.setdefault(lane.api_key_id, []).append(lane)
    return found


def waiting_lanes(connection: Connection, pool: str) -> list[Lane]:
    """The lanes with something in them, one look at the index for each, however many jobs they hold."""
    return [Lane.parse(name) for name in connection.scalars(_lanes(), {"pool": pool})]


def _one_writer(connection: Connection) -> bool:
    """Then rows need no lock: SQLite's transactions that write take turns as a whole."""
    return connection.dialect.name == "sqlite"


def _standing(connection: Connection, pool: str, keys: Sequence[str]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Each key's last turn in the pool, and how many jobs may run at once of those that have such a limit."""
    rows = connection.execute(_STANDING, {"pool": pool, "keys": keys}).all()
    for row in rows:
        if row.turn is None:
            connection.execute(_FIRST_TURN, {"pool": pool, "key": row.id})
    last = {row.id: row.turn or 0 for row in rows}
    return last, {row.id: row.max_running for row in rows if row.max_running is not None}


def _runs(connection: Connection, key: str) -> int:
    return connection.execute(_KEY_RUNS, {"key": key}).scalar_one()


def _may_run_one_more(connection: Connection, key: str, limit: int) -> bool:
    """Under the key's lock, because its jobs in another pool have another turn. Others' foreign keys may go on."""
    connection.execute(_KEY_LOCKED, {"key": key})
    return _runs(connection, key) < limit


def _take_turn(connection: Connection, pool: str, key: str, seen: int) -> bool:
    """Hold the key's turn, unless somebody holds it or has used it since it was `seen`."""
    if _one_writer(connection):
        return True
    return connection.execute(_TURN_IF_FREE, {"in_pool": pool, "key": key, "seen": seen}).one_or_none() is not None


def _use_turn(connection: Connection, pool: str, key: str) -> None:
    """Behind every key of the pool, those too for which nothing waits just now: they come back before this one."""
    connection.execute(_turn_used(), {"in_pool": pool, "key": key})


def _wait_for_turn(connection: Connection, pool: str, key: str) -> None:
    connection.execute(_TURN_AWAITED, {"in_pool": pool, "key": key})


def _lease_head(connection: Connection, now: Now, asking: _Asking, lanes: Sequence[Lane]) -> Lease | Overtaken | None:
    """Lease the first of the lanes' jobs. None if all are past their deadlines, or only at the border of what the
    worker can make."""
    named: dict[str, object] = {"of_pool": asking.pool}
    named |= {f"lane{number}": lane.name for number, lane in enumerate(lanes)}
    most, most_work = asking.capability.max_pixels, asking.max_work
    if most is not None:
        named["max_pixels"] = most
    if most_work is not None:
        named["max_work"] = most_work
    kind = {"pixels": most is not None, "work": most_work is not None}
    by = {"by_worker": asking.worker, "by_driver": asking.driver, "ttl_ms": asking.ttl_ms}
    row = connection.execute(_leased(now, len(lanes), **kind), named | by).one_or_none()
    if row is None:
        # Nothing that it can make, or somebody has just taken it.
        first = connection.scalars(_head(now, len(lanes), **kind), named).one_or_none()
        return None if first is None else Overtaken.TRY_AGAIN
    begun = {
        "job_id": row.id,
        "attempt": row.attempt,
        "worker": asking.worker,
        "pool": row.pool,
        "started_at": row.leased_at,
    }
    connection.execute(_BEGUN, begun)
    return lease_of(row)
