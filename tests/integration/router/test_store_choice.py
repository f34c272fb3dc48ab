"""Which job a worker is given, on real databases: turns between keys, priority and deadline within one, capability."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.choice import ANY_TERMS, Capability, Spill, Terms, work_of
from router.contract import JobState
from router.jobs import NewJob
from router.store import ApiKey
from router.store.clock import database_clock
from router.store.sql import SqlStore
from tests.conftest import NewDatabase
from tests.stores import DAWN, IMAGE, NO_TIME, SteeredClock, opened_at, request

TTL_MS = 60_000
POOL = "interactive"


async def keyed(store: SqlStore, *names: str) -> list[ApiKey]:
    return [await store.put_api_key(name, f"{i:x}" * 64) for i, name in enumerate(names, start=1)]


async def given_to(store: SqlStore, worker: str = "a", spills: tuple[Spill, ...] = ()) -> str | None:
    """The id of the job that the worker gets."""
    lease = await store.lease_next(worker, TTL_MS, spills=spills)
    return None if lease is None else lease.job_id


async def test_fifty_thousand_of_one_key_do_not_starve_anothers_ten(store: SqlStore) -> None:
    big, small = await keyed(store, "big", "small")
    batch = [NewJob(request(seed=seed)) for seed in range(50_000)]
    await store.add_jobs(big.id, POOL, batch)
    ten = {job.id for job in await store.add_jobs(small.id, POOL, batch[:10])}
    got = [await given_to(store) for _ in range(20)]
    assert ten < set(got)
    assert [name in ten for name in got] in ([True, False] * 10, [False, True] * 10)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.integers(0, 2), st.sampled_from([256, 1024])),
        max_size=12,
    ),
    st.lists(st.sampled_from("xyz-"), max_size=12),
)
def test_turns_go_round_and_within_a_key_priority_then_age(
    new_database: NewDatabase, first: list[tuple[str, int, int]], later: list[str]
) -> None:
    """Against a model: the key whose last turn is longest ago; of its jobs the highest priority, the oldest."""

    async def check() -> None:
        clock = SteeredClock()
        async with opened_at(new_database(), clock) as store:
            await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
            keys = dict(zip("xyz", await keyed(store, *"xyz"), strict=True))
            waiting: dict[str, list[tuple[int, int, str]]] = {name: [] for name in keys}
            last = dict.fromkeys(keys, 0)
            turn = 0

            async def add(name: str, priority: int, side: int) -> None:
                clock.advance(1)
                wanted = NewJob(request().model_copy(update={"width": side, "height": side}), Terms(priority=priority))
                (job,) = await store.add_jobs(keys[name].id, POOL, [wanted])
                waiting[name].append((-priority, job.created_at, job.id))

            for name, priority, side in first:
                await add(name, priority, side)
            for step in [*later, *"-" * len(first), "-"]:
                if step != "-":
                    await add(step, 0, 256)
                    continue
                expected = (
                    min((last[name], keys[name].id, name) for name in keys if waiting[name])
                    if any(waiting.values())
                    else None
                )
                got = await given_to(store)
                if expected is None:
                    assert got is None
                    continue
                name = expected[2]
                head = min(waiting[name])
                assert got == head[2]
                waiting[name].remove(head)
                turn += 1
                last[name] = turn

    asyncio.run(check())


async def test_a_key_that_was_alone_for_a_while_is_behind_who_comes_back(store: SqlStore) -> None:
    """Whatever the order of their ids, which is what decides between equals."""
    one, other = await keyed(store, "one", "other")
    for alone, back in ((one, other), (other, one)):
        wanted = [NewJob(request(seed=seed)) for seed in range(3)]
        await store.add_jobs(back.id, POOL, wanted[:1])
        await given_to(store)
        await store.add_jobs(alone.id, POOL, wanted)
        await given_to(store)
        (expected,) = await store.add_jobs(back.id, POOL, wanted[:1])
        assert await given_to(store) == expected.id
        while await given_to(store):
            pass


async def test_two_routers_that_choose_at_once_share_fairly_and_never_the_same_job(new_database: NewDatabase) -> None:
    shared = new_database()
    async with opened_at(shared, database_clock) as one, opened_at(shared, database_clock) as two:
        await one.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
        keys = await keyed(one, "x", "y", "z")
        owner = {}
        for key, count in zip(keys, (40, 20, 20), strict=True):
            for job in await one.add_jobs(key.id, POOL, [NewJob(request(seed=seed)) for seed in range(count)]):
                owner[job.id] = key.id
        got = await asyncio.gather(*(given_to((one, two)[n % 2]) for n in range(60)))
        assert None not in got
        assert len(set(got)) == 60
        # Who chooses while another's choice is not yet committed does not see it: a turn or two may swap places.
        assert all(abs(count - 20) <= 3 for count in Counter(owner[name] for name in got if name).values())


async def test_the_earlier_deadline_goes_first_and_without_one_the_older(store: SqlStore, clock: SteeredClock) -> None:
    (key,) = await keyed(store, "x")
    plain = await store.add_job(key.id, POOL, request())
    clock.advance(1)
    late = await store.add_job(key.id, POOL, request(), Terms(deadline=DAWN + 50_000))
    soon = await store.add_job(key.id, POOL, request(), Terms(deadline=DAWN + 20_000))
    far = await store.add_job(key.id, POOL, request(), Terms(deadline=DAWN + 48 * 3_600_000))
    assert [await given_to(store) for _ in range(4)] == [soon.id, late.id, plain.id, far.id]


async def test_a_job_past_its_deadline_is_never_given_and_ends_as_expired_with_the_reason(
    store: SqlStore, clock: SteeredClock
) -> None:
    (key,) = await keyed(store, "x")
    jobs = [await store.add_job(key.id, POOL, request(), Terms(deadline=DAWN + 10)) for _ in range(3)]
    running = await given_to(store)
    clock.advance(10)
    assert await given_to(store) is None
    first, rest = await store.expire(1), await store.expire(10)
    assert (len(first), len(rest)) == (1, 1)
    overdue = [*first, *rest]
    assert {job.id for job in overdue} < {job.id for job in jobs}
    states = Counter([found.state for job in jobs if (found := await store.job(job.id))])
    assert states == {JobState.EXPIRED: 2, JobState.RUNNING: 1}, "what runs by then is finished"
    ended = await store.job(overdue[0].id)
    assert ended is not None
    assert ended.error is not None
    assert (ended.error.type, ended.finished_at) == ("deadline_passed", DAWN + 10)
    assert ended.id != running


async def test_a_worker_is_given_only_what_it_can_make(store: SqlStore) -> None:
    (key,) = await keyed(store, "x")
    await store.describe_worker("a", Capability("fp8", "m", 512 * 512 + 5))

    async def add(side: int, terms: Terms = ANY_TERMS) -> str:
        sized = request().model_copy(update={"width": side, "height": side})
        return (await store.add_job(key.id, POOL, sized, terms)).id

    await add(1024)
    await add(528)  # of the same class as what it can make, and yet too large
    await add(512, Terms(tier="exact"))
    await add(512, Terms(model="other"))
    mine = [await add(512), await add(512, Terms(tier="fp8")), await add(512, Terms(model="m"))]
    assert {await given_to(store) for _ in range(4)} == {*mine, None}
    await store.put_worker("b", "http://127.0.0.1:2", "t" * 16, POOL)
    await store.describe_worker("b", Capability("exact", "other", None))
    assert len([await given_to(store, "b") for _ in range(4)]) == 4


async def test_another_pools_job_is_given_only_with_leave_and_after_ones_own(store: SqlStore) -> None:
    (key,) = await keyed(store, "x")
    short, long = request(steps=2), request(steps=40)
    heavy = await store.add_job(key.id, "batch", long, Terms(priority=9))
    light = await store.add_job(key.id, "batch", short)
    own = await store.add_job(key.id, POOL, long)
    leave = (Spill("batch", work_of(short)),)
    assert [await given_to(store, spills=leave) for _ in range(3)] == [own.id, light.id, None]
    assert await given_to(store) is None
    assert await given_to(store, spills=(Spill("batch", work_of(long)),)) == heavy.id


async def test_two_processes_never_lend_one_anothers_last_idle_worker(new_database: NewDatabase) -> None:
    shared, short = new_database(), request()
    leave = {name: (Spill("batch", work_of(short), (other,), idle_kept=1),) for name, other in ("ab", "ba")}
    async with opened_at(shared, database_clock) as one, opened_at(shared, database_clock) as two:
        for name in "ab":
            await one.put_worker(name, "http://127.0.0.1:1", "t" * 16, POOL)
        keys = await keyed(one, "x", "y", "z")  # several turns, so that neither waits for the other's
        for key in keys:
            await one.add_jobs(key.id, "batch", [NewJob(short)] * 20)
        for _ in range(20):
            asked = (one.lease_next("a", TTL_MS, 1, leave["a"]), two.lease_next("b", TTL_MS, 1, leave["b"]))
            (lent,) = [lease for lease in await asyncio.gather(*asked) if lease is not None]
            await one.finish(lent, IMAGE, NO_TIME)


async def test_a_worker_is_lent_only_while_those_that_stay_hold_nothing_and_may_work(store: SqlStore) -> None:
    (key,) = await keyed(store, "x")
    await store.put_worker("b", "http://127.0.0.1:1", "t" * 16, POOL)
    await store.add_job(key.id, "batch", request())
    await store.add_job(key.id, POOL, request())
    leave = (Spill("batch", work_of(request()), ("b",), idle_kept=1),)
    own = await store.lease_next("b", TTL_MS)
    assert own is not None
    assert await given_to(store, spills=leave) is None
    await store.finish(own, IMAGE, NO_TIME)
    await store.drain_worker("b")
    assert await given_to(store, spills=leave) is None
    await store.put_worker("b", "http://127.0.0.1:1", "t" * 16, POOL)
    assert await given_to(store, spills=leave) is not None


async def test_the_pace_is_told_from_the_newest_images(store: SqlStore, clock: SteeredClock) -> None:
    (key,) = await keyed(store, "x")
    for seconds in (1.0, 2.0, 3.0):
        clock.advance(1)
        await store.add_job(key.id, POOL, request(steps=5))
        lease = await store.lease_next("a", TTL_MS)
        assert lease is not None
        await store.finish(lease, IMAGE, NO_TIME.model_copy(update={"total": seconds + 9, "queued": 9.0}))
    assert [service.seconds for service in await store.recent_services(POOL, 2)] == [3.0, 2.0]
    assert {service.work for service in await store.recent_services(POOL, 2)} == {256 * 256 * 5}
