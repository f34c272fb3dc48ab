"""Keys, their limits, what they have used, and requests that are repeated: on real databases, over two routers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.contract import JobState
from router.errors import (
    AdmissionError,
    IdempotencyError,
    KeyExistsError,
    KeyQueueFullError,
    PoolUnavailableError,
    QueueFullError,
    RateLimitedError,
)
from router.jobs import NewJob
from router.limits import KeyLimits, Share
from router.store import Admitted, ApiKey, Repeatable
from router.store.sql import SqlStore
from tests.stores import DAWN, IMAGE, NO_TIME, SteeredClock, opened_at, opened_store, request

POOL = "interactive"
TTL_MS = 60_000
ONE = [NewJob(request())]
DAY_MS = 86_400_000


@pytest.fixture
async def other(store: SqlStore, database_url: str, clock: SteeredClock) -> AsyncIterator[SqlStore]:
    """Another router's, on the same database."""
    async with opened_at(database_url, clock) as opened:
        yield opened


async def limited(store: SqlStore, limits: KeyLimits, name: str = "x") -> ApiKey:
    return (await store.create_api_key(name, name.encode().hex().ljust(64, "0"), limits)).key


async def test_on_sqlite_whoever_asks_while_a_job_is_taken_on_stands_in_line_behind_it(tmp_path: Path) -> None:
    async with opened_store(tmp_path, SteeredClock()) as store:
        assert store.in_order
        await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
        key = await limited(store, KeyLimits())
        for _ in range(50):
            admitted, lease = await asyncio.gather(
                store.admit(key, POOL, ONE, 1000, front="one"), store.lease_next("a", TTL_MS, 1)
            )
            assert lease is not None
            assert [lease.job_id] == list(admitted.job_ids)
            assert await store.finish(lease, IMAGE, NO_TIME)


async def asked(store: SqlStore, key: ApiKey, repeatable: Repeatable | None = None) -> Admitted | AdmissionError:
    try:
        return await store.admit(key, POOL, ONE, 1000, repeatable)
    except AdmissionError as error:
        return error


async def test_two_routers_that_begin_at_once_have_one_default_key(store: SqlStore, other: SqlStore) -> None:
    made = await asyncio.gather(*(one.put_api_key("default", "d" * 64) for one in (store, other) * 4))
    assert len({key.id for key in made}) == 1


async def test_two_routers_that_are_told_of_a_worker_at_once_know_one(store: SqlStore, other: SqlStore) -> None:
    await asyncio.gather(*(one.put_worker("new", "http://127.0.0.1:2", "t" * 16, POOL) for one in (store, other) * 4))
    assert [worker.name for worker in await store.workers()] == ["a", "new"]


async def test_two_routers_that_are_told_to_expect_a_pool_at_once_do(store: SqlStore, other: SqlStore) -> None:
    await asyncio.gather(*(one.expect_pool("new", 1000) for one in (store, other) * 4))
    assert await other.pool_expected("new")


async def test_of_two_who_make_a_key_of_one_name_at_once_one_is_told_that_there_is_one(
    store: SqlStore, other: SqlStore
) -> None:
    asked = [one.create_api_key("team", f"{n}" * 64, KeyLimits()) for n, one in enumerate((store, other) * 4)]
    made = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["KeyExistsError"] * 7 + ["KeyRecord"]


async def test_a_rate_holds_over_two_routers_and_says_when_to_ask_again(
    store: SqlStore, other: SqlStore, clock: SteeredClock
) -> None:
    key = await limited(store, KeyLimits(per_minute=6))
    answers = await asyncio.gather(*(asked((store, other)[n % 2], key) for n in range(20)))
    refused = [answer for answer in answers if isinstance(answer, RateLimitedError)]
    assert (len(refused), len(answers)) == (14, 20)
    assert {error.retry_after_s for error in refused} == {10}
    told = sorted(answer.rate.remaining for answer in answers if isinstance(answer, Admitted) and answer.rate)
    assert told == [0, 1, 2, 3, 4, 5]
    assert await store.queued(POOL) == 6, "what was refused has left nothing"
    clock.advance(9_999)
    assert isinstance(await asked(other, key), RateLimitedError)
    clock.advance(1)
    assert isinstance(await asked(other, key), Admitted)


async def test_a_bound_on_what_waits_holds_over_two_routers(store: SqlStore, other: SqlStore) -> None:
    key = await limited(store, KeyLimits(waiting=3))
    free = await limited(store, KeyLimits(), "free")
    await store.admit(free, POOL, ONE * 5, 1000)
    answers = await asyncio.gather(*(asked((store, other)[n % 2], key) for n in range(10)))
    assert sum(isinstance(answer, Admitted) for answer in answers) == 3
    assert sum(isinstance(answer, KeyQueueFullError) for answer in answers) == 7
    assert isinstance(await asked(store, free), Admitted), "nobody else's limit"


async def test_a_key_runs_as_many_jobs_at_once_as_it_may_and_the_others_wait(store: SqlStore, other: SqlStore) -> None:
    key = await limited(store, KeyLimits(running=2))
    await store.admit(key, POOL, ONE * 5, 1000)
    leases = await asyncio.gather(*((store, other)[n % 2].lease_next("a", TTL_MS) for n in range(6)))
    held = [lease for lease in leases if lease]
    assert len(held) == 2
    free = await limited(store, KeyLimits(), "free")
    await store.admit(free, POOL, ONE, 1000)
    assert await store.lease_next("a", TTL_MS) is not None, "another key's turn"
    assert await store.lease_next("a", TTL_MS) is None
    await store.finish(held[0], IMAGE, NO_TIME)
    assert await store.lease_next("a", TTL_MS) is not None


async def test_what_may_wait_comes_on_top_of_what_may_run(store: SqlStore) -> None:
    key = await limited(store, KeyLimits(running=1, waiting=0))
    assert isinstance(await asked(store, key), Admitted)
    assert isinstance(await asked(store, key), KeyQueueFullError)
    lease = await store.lease_next("a", TTL_MS)
    assert isinstance(await asked(store, key), KeyQueueFullError), "it runs"
    assert lease is not None
    await store.finish(lease, IMAGE, NO_TIME)
    assert isinstance(await asked(store, key), Admitted)


async def test_a_pools_bound_takes_all_of_a_request_or_nothing(store: SqlStore) -> None:
    key = await limited(store, KeyLimits())
    await store.admit(key, POOL, ONE * 3, 5)
    with pytest.raises(QueueFullError) as caught:
        await store.admit(key, POOL, ONE * 3, 5)
    assert (caught.value.queued, await store.queued(POOL)) == (3, 3)


async def test_a_repeated_request_joins_its_jobs_and_another_under_its_name_is_refused(
    store: SqlStore, other: SqlStore
) -> None:
    key, another = await limited(store, KeyLimits(per_minute=1)), await limited(store, KeyLimits(), "y")
    mine = Repeatable("name", "a" * 64, waits=False)
    answers = await asyncio.gather(*(asked((store, other)[n % 2], key, mine) for n in range(10)))
    assert {tuple(answer.job_ids) for answer in answers if isinstance(answer, Admitted)} == {
        tuple(answer.job_ids) for answer in answers if isinstance(answer, Admitted) and not answer.joined
    }
    assert sum(isinstance(answer, Admitted) and not answer.joined for answer in answers) == 1
    assert await store.queued(POOL) == 1, "and a repetition costs no token"
    with pytest.raises(IdempotencyError):
        await store.admit(key, POOL, ONE, 1000, Repeatable("name", "b" * 64, waits=False))
    theirs = await store.admit(another, POOL, ONE, 1000, mine)
    assert not theirs.joined, "names are each key's own"


async def test_a_repeated_request_is_served_though_new_ones_are_refused(store: SqlStore) -> None:
    key = await limited(store, KeyLimits())
    mine = Repeatable("name", "a" * 64, waits=False)
    first = await store.admit(key, POOL, ONE, 1000, mine)
    gone = PoolUnavailableError(POOL, "nobody is there", 30)
    again = await store.admit(key, POOL, ONE, 1000, mine, gone)
    assert (again.job_ids, again.joined) == (first.job_ids, True)
    with pytest.raises(PoolUnavailableError):
        await store.admit(key, POOL, ONE, 1000, Repeatable("other", "a" * 64, waits=False), gone)
    assert not (await store.admit(key, POOL, ONE, 1000, Repeatable("other", "a" * 64, waits=False))).joined


async def test_jobs_that_several_wait_for_are_cancelled_when_the_last_has_gone_and_only_if_unstarted(
    store: SqlStore, other: SqlStore
) -> None:
    key = await limited(store, KeyLimits())
    mine = Repeatable("name", "a" * 64, waits=True)
    first = await store.admit(key, POOL, ONE * 2, 1000, mine, front="one")
    await other.admit(key, POOL, ONE * 2, 1000, mine, front="other")
    assert await store.leave(key, "name", "one", cancel=True) == ()
    lease = await store.lease_next("a", TTL_MS)
    assert lease is not None
    (cancelled,) = await other.leave(key, "name", "other", cancel=True)
    assert {lease.job_id, cancelled.id} == set(first.job_ids)
    assert cancelled.state is JobState.CANCELLED
    assert not (await store.admit(key, POOL, ONE * 2, 1000, mine, front="one")).joined, "the name is free again"


async def test_who_leaves_without_cancelling_may_come_back(store: SqlStore) -> None:
    key = await limited(store, KeyLimits())
    mine = Repeatable("name", "a" * 64, waits=True)
    first = await store.admit(key, POOL, ONE, 1000, mine, front="one")
    assert await store.leave(key, "name", "one", cancel=False) == ()
    assert await store.leave(key, "name", "one", cancel=True) == (), "nobody was left to leave"
    assert (await store.admit(key, POOL, ONE, 1000, mine, front="one")).job_ids == first.job_ids


async def test_a_key_is_made_once_limited_revoked_and_never_shown(store: SqlStore, clock: SteeredClock) -> None:
    made = await store.create_api_key("x", "ab" * 32, KeyLimits(per_minute=5, pools=("batch",)))
    assert (made.fingerprint, made.created_at, made.revoked_at) == ("ab" * 6, DAWN, None)
    assert await store.api_key("ab" * 32) == made.key
    assert await store.api_key("ab" * 31 + "cd") is None, "the fingerprint alone opens nothing"
    with pytest.raises(KeyExistsError):
        await store.create_api_key("x", "cd" * 32, KeyLimits())
    changed = await store.limit_api_key("x", KeyLimits(running=1))
    assert changed is not None
    assert changed.key.limits == KeyLimits(running=1)
    clock.advance(5)
    revoked = await store.revoke_api_key("x")
    clock.advance(5)
    assert await store.revoke_api_key("x") == revoked
    assert revoked is not None
    assert revoked.revoked_at == DAWN + 5
    assert await store.api_key("ab" * 32) is None
    assert list(await store.api_keys()) == [revoked]
    assert await store.revoke_api_key("nobody") is None
    assert await store.limit_api_key("nobody", KeyLimits()) is None


async def test_usage_is_counted_by_key_and_day_in_the_transaction_that_ends_the_job(
    store: SqlStore, clock: SteeredClock
) -> None:
    key = await limited(store, KeyLimits())
    spent = NO_TIME.model_copy(update={"text": 0.5, "denoise": 2.0, "decode": 0.25, "queued": 99.0, "total": 110.0})

    async def make_one(*, late: bool = False) -> None:
        await store.admit(key, POOL, ONE, 1000)
        lease = await store.lease_next("a", TTL_MS)
        assert lease is not None
        if late:
            clock.advance(TTL_MS)
            await store.sweep()
        assert bool(await store.finish(lease, IMAGE, spent)) is not late

    await make_one()
    await make_one()
    clock.advance(DAY_MS)
    await make_one(late=True)
    lease = await store.lease_next("a", TTL_MS)
    assert lease is not None
    await store.finish(lease, IMAGE, spent)
    days = await store.used("x", "2020-01-01")
    assert days is not None
    assert [(day.day, day.images, day.pixels, day.gpu_ms) for day in days] == [
        ("2027-01-15", 2, 2 * 256 * 256, 5500),
        ("2027-01-16", 1, 256 * 256, 2750),
    ]
    assert await store.used("x", "2027-01-16") == days[1:]
    assert await store.used("nobody", "2020-01-01") is None


async def test_what_waits_is_told_by_key_and_what_runs_by_pool(store: SqlStore) -> None:
    x, y = await limited(store, KeyLimits()), await limited(store, KeyLimits(), "y")
    work = 256 * 256 * 20
    await store.admit(x, POOL, ONE * 3, 1000)
    await store.admit(y, POOL, ONE, 1000)
    await store.admit(y, "batch", ONE, 1000)
    await store.lease_next("a", TTL_MS)
    shares = await store.shares(POOL)
    assert sum(share.jobs for share in shares.values()) == 3
    assert sum(share.work for share in shares.values()) == 3 * work
    assert await store.running(POOL) == Share(1, work)
    assert await store.running("batch") == Share(0, 0)


async def test_a_pool_is_expected_until_its_time_is_over(store: SqlStore, clock: SteeredClock) -> None:
    assert not await store.pool_expected("batch")
    for seconds in (10, 20):
        await store.expect_pool("batch", seconds * 1000)
    clock.advance(19_999)
    assert await store.pool_expected("batch")
    clock.advance(1)
    assert not await store.pool_expected("batch")
