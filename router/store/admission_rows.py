"""Taking jobs on, within bounds: transactions of the store, as plain functions of a connection.

The bounds are read, and the tokens written, in the transaction that adds the jobs, under a lock of the key's row if
the key has limits: so they hold over any number of routers. The pool's bound is everybody's, and no row is locked
for it: on Postgres it may be passed by as many as ask at the same moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Integer, bindparam, func, literal, select, text, update

from router.choice import Lane
from router.errors import AdmissionError, IdempotencyError, KeyQueueFullError, QueueFullError, RateLimitedError
from router.jobs import NewJob
from router.limits import Bucket, Rate, Share, take
from router.store import Admitted, ApiKey, Repeatable, front_rows, job_rows
from router.store.choice_rows import waiting_lanes
from router.store.job_rows import RUNNING, WAITING, Now
from router.store.tables import api_keys, expected_pools, idempotency, jobs

_EXPECTED = text(
    'INSERT INTO expected_pools (name, "until") VALUES (:pool, :until) '
    'ON CONFLICT (name) DO UPDATE SET "until" = excluded."until"'
)


def admit(
    connection: Connection,
    now: Now,
    entropies: Sequence[bytes],
    key: ApiKey,
    pool: str,
    wanted: Sequence[NewJob],
    pool_bound: int,
    *,
    repeatable: Repeatable | None,
    refusal: AdmissionError | None,
    front: str | None,
) -> Admitted:
    if repeatable is not None and not claim(connection, now, key, repeatable):
        return _joined(connection, key, repeatable, front)
    if refusal is not None:
        raise refusal
    rate = within_limits(connection, now, key, pool, len(wanted))
    room_of_pool(connection, pool, pool_bound, len(wanted))
    ids = job_rows.add(connection, now, entropies, key.id, pool, wanted, front if repeatable is None else None)
    if repeatable is not None:
        mine = (idempotency.c.api_key_id == key.id, idempotency.c.name == repeatable.name)
        connection.execute(update(idempotency).where(*mine).values(job_ids=" ".join(ids)))
        if repeatable.waits and front is not None:
            front_rows.wait(connection, key.id, repeatable.name, front)
    return Admitted(ids, joined=False, rate=rate)


def expect(connection: Connection, now: Now, pool: str, for_ms: int) -> None:
    until = connection.execute(select(now)).scalar_one() + for_ms
    connection.execute(_EXPECTED, {"pool": pool, "until": until})


def expected(connection: Connection, now: Now, pool: str) -> bool:
    still = select(expected_pools.c.name).where(expected_pools.c.name == pool, expected_pools.c.until > now)
    return connection.execute(still).one_or_none() is not None


def shares(connection: Connection, pool: str) -> Mapping[str, Share]:
    """Read from the index alone, lane by lane."""
    lanes = select(jobs.c.lane, func.count(), func.sum(jobs.c.work)).where(jobs.c.pool == pool, WAITING)
    found: defaultdict[str, Share] = defaultdict(lambda: Share(0, 0))
    for name, count, work in connection.execute(lanes.group_by(jobs.c.lane)):
        key = Lane.parse(name).api_key_id
        found[key] = Share(found[key].jobs + count, found[key].work + int(work))
    return dict(found)


def running(connection: Connection, pool: str) -> Share:
    held = select(func.count(), func.coalesce(func.sum(jobs.c.work), 0)).where(RUNNING, jobs.c.pool == pool)
    count, work = connection.execute(held).one()
    return Share(count, int(work))


def claim(connection: Connection, now: Now, key: ApiKey, repeatable: Repeatable) -> bool:
    """Whether this is the first request of its name. Of two at the same moment, one waits here for the other."""
    at = connection.execute(select(now)).scalar_one()
    claimed = connection.execute(
        text(
            "INSERT INTO idempotency (api_key_id, name, body_sha256, job_ids, waiting, created_at) "
            "VALUES (:key, :name, :body, '', :waiting, :at) ON CONFLICT DO NOTHING RETURNING name"
        ),
        {
            "key": key.id,
            "name": repeatable.name,
            "body": repeatable.body_sha256,
            "waiting": int(repeatable.waits),
            "at": at,
        },
    )
    return claimed.one_or_none() is not None


def _joined(connection: Connection, key: ApiKey, repeatable: Repeatable, front: str | None) -> Admitted:
    mine = (idempotency.c.api_key_id == key.id, idempotency.c.name == repeatable.name)
    row = connection.execute(
        update(idempotency)
        .where(*mine)
        .values(waiting=idempotency.c.waiting + int(repeatable.waits))
        .returning(idempotency.c.body_sha256, idempotency.c.job_ids)
    ).one()
    if row.body_sha256 != repeatable.body_sha256:
        raise IdempotencyError(
            f"the Idempotency-Key {repeatable.name} came with another request before; a new request wants a new key"
        )
    if repeatable.waits and front is not None:
        front_rows.wait(connection, key.id, repeatable.name, front)
    return Admitted(row.job_ids.split(), joined=True, rate=None)


def within_limits(connection: Connection, now: Now, key: ApiKey, pool: str, more: int) -> Rate | None:
    """Take one token for the request, and see that `more` jobs may wait. Raises KeyQueueFullError, RateLimitedError."""
    limits = key.limits
    if limits.per_minute is None and limits.waiting is None:
        return None
    if limits.waiting is not None:
        room_of_key(connection, key, pool, more)
    if limits.per_minute is None:
        return None
    # The foreign keys of others' new rows may still point at it.
    locked = select(api_keys.c.tokens, api_keys.c.tokens_at, now.label("at")).where(api_keys.c.id == key.id)
    row = connection.execute(locked.with_for_update(key_share=True)).one()
    taken = take(None if row.tokens is None else Bucket(row.tokens, row.tokens_at), limits.per_minute, row.at)
    if taken.retry_after_s is not None:
        raise RateLimitedError(taken.rate, taken.retry_after_s)
    connection.execute(
        update(api_keys).where(api_keys.c.id == key.id).values(tokens=taken.bucket.tokens, tokens_at=taken.bucket.at)
    )
    return taken.rate


_SOME = select(literal(1)).where(jobs.c.pool == bindparam("pool"), WAITING).limit(bindparam("at_most", type_=Integer()))
_COUNT = select(func.count()).select_from(_SOME.subquery())
_IN_LANES = jobs.c.lane.in_(bindparam("lanes", expanding=True))
_COUNT_LANES = select(func.count()).select_from(_SOME.where(_IN_LANES).subquery())


def room_of_key(connection: Connection, key: ApiKey, pool: str, more: int) -> None:
    """Under the key's lock: whether `more` of its jobs may wait. Raises KeyQueueFullError."""
    limits = key.limits
    if limits.waiting is None:
        return
    connection.execute(select(api_keys.c.id).where(api_keys.c.id == key.id).with_for_update(key_share=True))
    allowed = limits.waiting + (limits.running or 0)
    held = _count(connection, pool, key.id, allowed + 1)
    if limits.running is not None:
        of_key = select(func.count()).where(RUNNING, jobs.c.api_key_id == key.id)
        held += connection.execute(of_key).scalar_one()
    if held + more > allowed:
        raise KeyQueueFullError(pool, allowed, room=max(0, allowed - held))


def room_of_pool(connection: Connection, pool: str, bound: int, more: int) -> None:
    """Whether `more` jobs may wait in the pool. Raises QueueFullError."""
    queued = _count(connection, pool, None, bound + 1)
    if queued + more > bound:
        raise QueueFullError(pool, queued, 1, room=max(0, bound - queued))


def _count(connection: Connection, pool: str, api_key_id: str | None, at_most: int) -> int:
    """How many wait in the pool, of all keys or of one; counting stops at `at_most`."""
    named: dict[str, object] = {"pool": pool, "at_most": at_most}
    if api_key_id is None:
        return connection.execute(_COUNT, named).scalar_one()
    named["lanes"] = [lane.name for lane in waiting_lanes(connection, pool) if lane.api_key_id == api_key_id]
    return connection.execute(_COUNT_LANES, named).scalar_one()
