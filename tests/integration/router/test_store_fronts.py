"""What a router process that died has left behind: on real databases, over two routers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from router.contract import JobState
from router.fronts import AT_ONCE, Silences, present
from router.jobs import NewJob
from router.limits import KeyLimits
from router.notices import Notices
from router.store import ApiKey, Repeatable
from router.store.sql import SqlStore
from router.sweeper import let_go
from tests.integration.router.core_rig import eventually
from tests.stores import SteeredClock, opened_at, request

POOL = "interactive"
TTL_MS = 60_000
ONE = [NewJob(request())]
MINE = Repeatable("name", "a" * 64, waits=True)


@pytest.fixture
async def other(store: SqlStore, database_url: str, clock: SteeredClock) -> AsyncIterator[SqlStore]:
    """Another router's, on the same database."""
    async with opened_at(database_url, clock) as opened:
        yield opened


@pytest.fixture
async def key(store: SqlStore) -> ApiKey:
    return (await store.create_api_key("x", "0" * 64, KeyLimits())).key


async def swept(store: SqlStore) -> None:
    """By one who has seen enough: whoever did not beat in between is dead."""
    silences = Silences(1)
    silences.look(await store.fronts.beats())
    await let_go(store, Notices(), silences)


async def state(store: SqlStore, job_id: str) -> JobState:
    job = await store.job(job_id)
    assert job is not None
    return job.state


async def test_what_waits_for_a_dead_fronts_caller_is_cancelled_and_nothing_else(store: SqlStore, key: ApiKey) -> None:
    await store.fronts.beat("dead", 1)
    runs = await store.admit(key, POOL, ONE, 1000, front="dead")
    assert await store.lease_next("a", TTL_MS)
    waits = await store.admit(key, POOL, ONE, 1000, front="dead")
    native = await store.admit(key, POOL, ONE, 1000)
    elsewhere = await store.admit(key, POOL, ONE, 1000, front="alive")
    await swept(store)
    ids = [*runs.job_ids, *waits.job_ids, *native.job_ids, *elsewhere.job_ids]
    found = [await state(store, job_id) for job_id in ids]
    assert found == [JobState.RUNNING, JobState.CANCELLED, JobState.QUEUED, JobState.QUEUED]
    assert await store.fronts.beats() == {}


async def test_a_front_that_beats_after_the_look_keeps_what_it_has(store: SqlStore, key: ApiKey) -> None:
    await store.fronts.beat("alive", 1)
    (job_id,) = (await store.admit(key, POOL, ONE, 1000, front="alive")).job_ids
    await store.fronts.beat("alive", 2)
    settled = await store.fronts.settle("alive", 1, AT_ONCE, cancel_repeatable=True)
    assert (settled.cancelled, settled.done) == ((), True)
    assert await state(store, job_id) is JobState.QUEUED
    assert await store.fronts.beats() == {"alive": 2}


async def test_a_keyed_request_of_a_dead_front_is_cancelled_unless_somebody_has_joined_it(
    store: SqlStore, other: SqlStore, key: ApiKey
) -> None:
    await store.fronts.beat("dead", 1)
    alone = await store.admit(key, POOL, ONE, 1000, Repeatable("alone", "a" * 64, waits=True), front="dead")
    both = await store.admit(key, POOL, ONE, 1000, MINE, front="dead")
    assert (await other.admit(key, POOL, ONE, 1000, MINE, front="alive")).joined
    await swept(other)
    assert await state(store, alone.job_ids[0]) is JobState.CANCELLED
    assert await state(store, both.job_ids[0]) is JobState.QUEUED
    (cancelled,) = await other.leave(key, "name", "alive", cancel=True)
    assert cancelled.id == both.job_ids[0], "the last who waited has gone"


async def test_a_front_whose_share_was_taken_off_does_not_leave_for_others(store: SqlStore, key: ApiKey) -> None:
    await store.fronts.beat("late", 1)
    first = await store.admit(key, POOL, ONE, 1000, MINE, front="late")
    await store.admit(key, POOL, ONE, 1000, MINE, front="alive")
    await swept(store)
    assert await store.leave(key, "name", "late", cancel=True) == ()
    assert await state(store, first.job_ids[0]) is JobState.QUEUED


async def test_several_who_sweep_at_once_cancel_each_job_once_in_pieces(
    store: SqlStore, other: SqlStore, key: ApiKey
) -> None:
    await store.fronts.beat("dead", 1)
    for number in range(4):
        await store.admit(key, POOL, ONE * 2, 1000, front="dead")
        await store.admit(key, POOL, ONE, 1000, Repeatable(f"{number}", "a" * 64, waits=True), front="dead")

    async def settle(by: SqlStore) -> list[str]:
        cancelled: list[str] = []
        while not (settled := await by.fronts.settle("dead", 1, 3, cancel_repeatable=True)).done:
            cancelled += [job.id for job in settled.cancelled]
        return cancelled + [job.id for job in settled.cancelled]

    found = [job_id for ids in await asyncio.gather(settle(store), settle(other)) for job_id in ids]
    assert len(found) == len(set(found)) == 12
    assert await store.queued(POOL) == 0


async def test_a_forgotten_request_takes_its_shares_along(store: SqlStore, key: ApiKey, clock: SteeredClock) -> None:
    await store.fronts.beat("dead", 1)
    await store.admit(key, POOL, ONE, 1000, MINE, front="dead")
    clock.advance(TTL_MS)
    await store.forget_repetitions(1)
    again = await store.admit(key, POOL, ONE, 1000, MINE, front="alive")
    await swept(store)
    assert await state(store, again.job_ids[0]) is JobState.QUEUED


async def test_a_front_beats_and_is_made_again_and_ends_with_its_process(store: SqlStore) -> None:
    async with present(store.fronts, "one", 0.05):
        (first,) = (await store.fronts.beats()).values()
        await store.fronts.settle("one", first, AT_ONCE, cancel_repeatable=True)

        async def made_again() -> bool:
            return (await store.fronts.beats()).get("one", 0) > first

        await eventually(made_again, "the front beats again")
    assert await store.fronts.beats() == {}
