"""The store on real databases: what is kept, and in which order."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import cast

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Integer, insert, literal_column, select, text
from sqlalchemy.exc import IntegrityError

from router.contract import JobState
from router.jobs import AttemptEnd, Lease, NewJob
from router.store import ApiKey, Measure, Renewal
from router.store.clock import database_clock
from router.store.database import Database
from router.store.sql import SqlStore
from router.store.tables import api_keys, metadata
from tests.stores import DAWN, IMAGE, NO_TIME, SteeredClock, opened_at, opened_store, request

TTL_MS = 15_000
POOL = "interactive"


@pytest.fixture
async def store(store: SqlStore) -> SqlStore:
    """With a second worker."""
    await store.put_worker("b", "http://127.0.0.1:1", "t" * 16, POOL)
    return store


@pytest.fixture
async def key(store: SqlStore) -> ApiKey:
    return await store.put_api_key("default", "0" * 64)


async def leased(store: SqlStore, worker: str = "a") -> Lease:
    lease = await store.lease_next(worker, TTL_MS)
    assert lease is not None
    return lease


async def test_migrations_and_tables_say_the_same(database_url: str) -> None:
    database = await Database.open(database_url)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))

    assert await database.read(differences) == []
    await database.close()


async def test_on_sqlite_a_lease_alone_is_not_synced_to_the_disk(tmp_path: Path) -> None:
    """2 is FULL: a commit is on the disk before it is answered; 1 is NORMAL: the next one of those takes it along."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/db")

    def how(connection: Connection) -> object:
        return connection.exec_driver_sql("PRAGMA synchronous").scalar()

    said = [await write(how) for write in (database.write, database.write_unsynced, database.write)]
    await database.close()
    assert said == [2, 1, 2]


async def test_a_transaction_that_was_left_open_is_undone_before_the_next_one(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/db")
    for side in (database.write, database.read):
        driver = cast("sqlite3.Connection", await side(lambda connection: connection.connection.dbapi_connection))
        driver.execute("BEGIN")
        left_open = [driver.in_transaction]
        assert await side(lambda connection: connection.exec_driver_sql("SELECT 1").scalar()) == 1
        left_open.append(driver.in_transaction)
        assert left_open == [True, False]
    await database.close()


async def test_on_sqlite_a_job_is_synced_to_the_disk_before_its_id_is_told(tmp_path: Path) -> None:
    """An open request's id is told to nobody before its end, and that is synced."""
    how = select(literal_column("synchronous", Integer)).select_from(text("pragma_synchronous")).scalar_subquery()
    async with opened_store(tmp_path, lambda: how) as store:
        key = await store.put_api_key("default", "0" * 64)
        told = await store.admit(key, POOL, [NewJob(request())], 1000)
        open_request = await store.admit(key, POOL, [NewJob(request())], 1000, front="front")
        jobs = await store.jobs([*told.job_ids, *open_request.job_ids])
    assert [job.created_at for job in jobs] == [2, 1]


async def test_opening_again_keeps_what_was_there(database_url: str, clock: SteeredClock) -> None:
    async with opened_at(database_url, clock) as store:
        key = await store.put_api_key("default", "0" * 64)
        job = await store.add_job(key.id, POOL, request("a fox — 🦊"))
    async with opened_at(database_url, clock) as store:
        assert await store.job(job.id) == job


async def test_the_databases_clock_tells_milliseconds(database_url: str) -> None:
    store = await SqlStore.open(database_url, database_clock)
    key = await store.put_api_key("default", "0" * 64)
    before = time.time_ns() // 1_000_000
    job = await store.add_job(key.id, POOL, request())
    after = time.time_ns() // 1_000_000
    await store.close()
    assert before - 1 <= job.created_at <= after + 1


async def test_jobs_leave_the_queue_in_the_order_they_came(store: SqlStore, key: ApiKey, clock: SteeredClock) -> None:
    jobs = []
    for _ in range(5):
        clock.advance(1)
        jobs.append((await store.add_job(key.id, POOL, request())).id)
    assert [(await leased(store)).job_id for _ in jobs] == jobs


async def test_a_lost_job_goes_back_to_its_old_place(store: SqlStore, key: ApiKey, clock: SteeredClock) -> None:
    first = await store.add_job(key.id, POOL, request())
    clock.advance(1)
    await store.add_job(key.id, POOL, request())
    lease = await leased(store)
    await store.end_attempt(lease, AttemptEnd.LOST, "gone")
    again = await leased(store, "b")
    assert (again.job_id, again.attempt, again.worker) == (first.id, 2, "b")


async def test_a_worker_gets_only_its_own_pools_jobs(store: SqlStore, key: ApiKey) -> None:
    await store.add_job(key.id, "batch", request())
    assert await store.lease_next("a", TTL_MS) is None
    assert await store.queued("batch") == 1


async def test_a_draining_or_unknown_worker_gets_nothing(store: SqlStore, key: ApiKey) -> None:
    await store.add_job(key.id, POOL, request())
    await store.drain_worker("a")
    assert await store.lease_next("a", TTL_MS) is None
    assert await store.lease_next("nobody", TTL_MS) is None
    await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
    assert (await leased(store)).attempt == 1


async def test_a_job_keeps_the_moment_that_its_first_attempt_began(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    job = await store.add_job(key.id, POOL, request())
    clock.advance(10)
    await store.end_attempt(await leased(store), AttemptEnd.LOST, "gone")
    clock.advance(10)
    await store.finish(await leased(store), IMAGE, NO_TIME)
    ended = await store.job(job.id)
    assert ended is not None
    assert (ended.created_at, ended.started_at, ended.finished_at) == (DAWN, DAWN + 10, DAWN + 20)


async def test_a_finished_job_has_its_image(store: SqlStore, key: ApiKey) -> None:
    job = await store.add_job(key.id, POOL, request())
    assert await store.finish(await leased(store), IMAGE, NO_TIME)
    ended = await store.job(job.id)
    assert ended is not None
    assert (ended.state, ended.image, ended.error) == (JobState.SUCCEEDED, IMAGE, None)


async def test_a_job_that_crashes_two_workers_fails_with_the_reason(store: SqlStore, key: ApiKey) -> None:
    await store.add_job(key.id, POOL, request())
    requeued = await store.end_attempt(await leased(store, "a"), AttemptEnd.CRASHED, "CUDA error")
    assert requeued is not None
    assert requeued.state is JobState.QUEUED
    failed = await store.end_attempt(await leased(store, "b"), AttemptEnd.CRASHED, "CUDA error")
    assert failed is not None
    assert failed.error is not None
    assert (failed.state, failed.error.type) == (JobState.FAILED, "engine_error")
    assert failed.error.detail == "crashed 2 times, on a, b; last: CUDA error"


async def test_of_several_who_cancel_a_job_one_has_ended_it(store: SqlStore, key: ApiKey) -> None:
    job = await store.add_job(key.id, POOL, request())
    ended = [seen for seen in await asyncio.gather(*(store.cancel_job(job.id) for _ in range(5))) if seen]
    assert ended == [await store.job(job.id)]


async def test_cancelling_a_running_job_is_told_at_the_next_renewal(store: SqlStore, key: ApiKey) -> None:
    job = await store.add_job(key.id, POOL, request())
    lease = await leased(store)
    assert await store.cancel_job(job.id) is None
    assert await store.renew(lease, TTL_MS) is Renewal.CANCEL


async def test_a_lost_job_that_was_to_be_cancelled_is_not_tried_again(store: SqlStore, key: ApiKey) -> None:
    job = await store.add_job(key.id, POOL, request())
    lease = await leased(store)
    await store.cancel_job(job.id)
    ended = await store.end_attempt(lease, AttemptEnd.LOST, "gone")
    assert ended is not None
    assert ended.state is JobState.CANCELLED
    assert await store.lease_next("b", TTL_MS) is None


async def test_cancelling_a_job_that_has_ended_changes_nothing(store: SqlStore, key: ApiKey) -> None:
    job = await store.add_job(key.id, POOL, request())
    await store.finish(await leased(store), IMAGE, NO_TIME)
    ended = await store.job(job.id)
    assert await store.cancel_job(job.id) is None
    assert await store.job(job.id) == ended
    assert await store.cancel_job("job_unknown") is None


async def test_counts_are_by_pool_state_and_end(store: SqlStore, key: ApiKey) -> None:
    for pool in (POOL, POOL, POOL, "batch"):
        await store.add_job(key.id, pool, request())
    await store.end_attempt(await leased(store), AttemptEnd.LOST, "gone")
    await store.finish(await leased(store), IMAGE, NO_TIME)
    await leased(store)
    assert await store.counts() == {
        POOL: {JobState.QUEUED: 1, JobState.RUNNING: 1, JobState.SUCCEEDED: 1},
        "batch": {JobState.QUEUED: 1},
    }
    assert await store.attempt_counts() == {POOL: {AttemptEnd.LOST: 1, AttemptEnd.FINISHED: 1}}


async def test_a_workers_finished_jobs_are_counted_from_its_attempts(store: SqlStore, key: ApiKey) -> None:
    for end in (None, AttemptEnd.LOST, None):
        await store.add_job(key.id, POOL, request())
        lease = await leased(store)
        await (store.finish(lease, IMAGE, NO_TIME) if end is None else store.end_attempt(lease, end, ""))
        await store.finish(await leased(store, "b"), IMAGE, NO_TIME) if end else None
    assert {worker.name: worker.finished for worker in await store.workers()} == {"a": 2, "b": 1}


async def test_a_worker_registered_again_is_the_same_and_drains_no_more(store: SqlStore) -> None:
    await store.drain_worker("a")
    again = await store.put_worker("a", "unix:/run/a", "u" * 16, "batch")
    assert (again.url, again.token, again.pool, again.draining) == ("unix:/run/a", "u" * 16, "batch", False)
    assert len(await store.workers()) == 2


async def test_a_worker_that_is_gone_is_gone(store: SqlStore) -> None:
    await store.remove_worker("a")
    await store.remove_worker("a")
    assert [worker.name for worker in await store.workers()] == ["b"]
    assert await store.drain_worker("a") is None


async def test_a_key_is_found_by_its_hash_and_keeps_its_id_when_it_changes(store: SqlStore, key: ApiKey) -> None:
    assert await store.api_key("0" * 64) == key
    assert await store.put_api_key("default", "1" * 64) == key
    assert await store.api_key("0" * 64) is None
    assert await store.api_key("1" * 64) == key


async def test_a_job_belongs_to_a_key_that_exists(store: SqlStore) -> None:
    with pytest.raises(IntegrityError):
        await store.add_job("key_unknown", POOL, request())


async def test_a_statement_that_failed_tells_nobody_what_was_in_it(store: SqlStore) -> None:
    with pytest.raises(IntegrityError) as caught:
        await store.add_job("key_unknown", POOL, request("a private prompt"))
    assert "private" not in str(caught.value)
    assert "INSERT INTO jobs" in str(caught.value)


async def test_two_workers_never_get_the_same_job(store: SqlStore, key: ApiKey) -> None:
    for _ in range(20):
        await store.add_job(key.id, POOL, request())
    leases = await asyncio.gather(*(store.lease_next("ab"[n % 2], TTL_MS) for n in range(30)))
    got = [lease.job_id for lease in leases if lease is not None]
    assert (len(got), len(set(got))) == (20, 20)


async def test_a_cancelled_caller_leaves_the_store_usable(store: SqlStore, key: ApiKey) -> None:
    for _ in range(20):
        asking = asyncio.create_task(store.add_job(key.id, POOL, request()))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await store.add_job(key.id, POOL, request())
    assert await store.queued(POOL) == 21  # those too that nobody waited for: they had begun


async def test_a_failed_transaction_leaves_nothing(database_url: str) -> None:
    database = await Database.open(database_url)

    def half(connection: Connection) -> None:
        connection.execute(insert(api_keys).values(id="key_1", name="n", sha256="0", created_at=0))
        raise LookupError("half-way")

    with pytest.raises(LookupError):
        await database.write(half)
    assert await database.read(lambda connection: connection.execute(api_keys.select()).all()) == []
    await database.close()


async def test_a_registered_worker_never_shows_its_token(store: SqlStore) -> None:
    assert "tttt" not in repr(await store.workers())


async def test_the_first_fact_stands_whoever_says_it(database_url: str, clock: SteeredClock) -> None:
    async with opened_at(database_url, clock) as one, opened_at(database_url, clock) as other:
        assert await one.fact("mark") is None
        said = await asyncio.gather(*(store.fact("mark", f"{number}") for number, store in enumerate((one, other) * 8)))
        assert set(said) == {await one.fact("mark")}


async def test_a_clock_that_is_set_back_makes_no_lease_longer(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    await store.put_worker("w", "http://127.0.0.1:1", "t" * 16, POOL)
    for _ in range(2):
        await store.add_job(key.id, POOL, request())
    held, left = await store.lease_next("w", 1000), await store.lease_next("w", 1000)
    assert held
    assert left
    assert await store.shorten_leases(1000) == 0
    clock.advance(-3_600_000)
    assert await store.shorten_leases(1000) == 2
    clock.advance(900)
    assert await store.renew(held, 1000) is Renewal.HELD
    assert not await store.sweep()
    clock.advance(101)
    assert [job.id for job in await store.sweep()] == [left.job_id]


async def test_what_jobs_waited_and_workers_did_is_added_up_and_outlives_the_rows(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    await store.put_worker("w", "http://127.0.0.1:1", "t" * 16, POOL)
    for waited_ms, took_ms in ((100, 2000), (3000, 2000)):
        await store.add_job(key.id, POOL, request())
        clock.advance(waited_ms)
        lease = await store.lease_next("w", 10_000)
        assert lease
        clock.advance(took_ms)
        assert await store.finish(lease, IMAGE, NO_TIME.model_copy(update={"denoise": 1.5, "encode": 9}))
    await store.add_job(key.id, POOL, request())
    clock.advance(500)
    assert await store.oldest_waiting_ms() == {POOL: 500}
    lease = await store.lease_next("w", 1000)
    clock.advance(1001)
    await store.sweep()
    found = {(tally.of, tally.measure, tally.bucket): (tally.count, tally.total_ms) for tally in await store.tallies()}
    assert found == {
        (POOL, Measure.WAIT, 0): (1, 100),
        (POOL, Measure.WAIT, 4): (1, 3000),
        (POOL, Measure.SERVICE, 3): (2, 4000),
        ("w", Measure.BUSY, 0): (2, 3000),
        (f"{POOL}/finished", Measure.ENDED, 0): (2, 0),
        (f"{POOL}/expired", Measure.ENDED, 0): (1, 0),
    }
