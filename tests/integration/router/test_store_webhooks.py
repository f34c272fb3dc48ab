"""The outbox: promised with the job's end, claimed by one, recorded by whoever holds the claim; on real databases.

First as sentences, then as a state machine: any order of ends, claims, verdicts (late ones included) and replays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from router.choice import Terms
from router.contract import DeliveryState
from router.jobs import AttemptEnd, Job
from router.store import ApiKey
from router.store.sql import SqlStore
from router.webhooks import Again, Claim, Dead, Delivered, Verdict
from tests.conftest import NewDatabase
from tests.integration.router.store_machine import StoreMachine
from tests.stores import IMAGE, NO_TIME, SteeredClock, opened_at, request

POOL = "interactive"
HOOK = "https://example.com/hook"
TTL_MS = 1000
GONE = Dead(410, "gone", gone=True)


@pytest.fixture
async def key(store: SqlStore) -> ApiKey:
    return await store.put_api_key("default", "0" * 64)


async def ended(store: SqlStore, key: ApiKey, url: str | None = HOOK) -> Job:
    """A job that was cancelled while it waited."""
    job = await store.add_job(key.id, POOL, request(), webhook=url)
    cancelled = await store.cancel_job(job.id)
    assert cancelled
    return cancelled


async def claimed(store: SqlStore, not_to: tuple[str, ...] = ()) -> Claim:
    claim = await store.outbox.claim(TTL_MS, not_to)
    assert claim
    return claim


async def test_every_way_to_end_a_job_promises_one_webhook_and_no_other_change_does(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    async def leased() -> Job:
        return await store.add_job(key.id, POOL, request(), webhook=HOOK)

    def promised() -> Coroutine[object, object, int]:
        async def count() -> int:
            return sum((await store.outbox.counts()).values())

        return count()

    expected = {}
    for event, end in {
        "job.succeeded": None,
        "job.failed": AttemptEnd.REFUSED,
        "job.cancelled": AttemptEnd.CANCELLED,
    }.items():
        job = await leased()
        lease = await store.lease_next("a", TTL_MS)
        assert lease
        before = await promised()
        await store.renew(lease, TTL_MS)
        assert await promised() == before
        if end is None:
            assert await store.finish(lease, IMAGE, NO_TIME)
            assert await store.finish(lease, IMAGE, NO_TIME) is None
        else:
            assert await store.end_attempt(lease, end, "why")
        expected[job.id] = event
    job = await leased()
    lease = await store.lease_next("a", TTL_MS)
    assert lease
    assert await store.end_attempt(lease, AttemptEnd.LOST, "why")
    assert await promised() == 3, "a job that is tried again has not ended"
    assert await store.lease_next("a", TTL_MS)
    await store.cancel_job(job.id)
    clock.advance(TTL_MS + 1)
    await store.sweep()
    expected[job.id] = "job.cancelled"
    expected[(await ended(store, key)).id] = "job.cancelled"
    late = await store.add_job(key.id, POOL, request(), Terms(deadline=clock.ms + 1), HOOK)
    clock.advance(2)
    await store.expire(10)
    expected[late.id] = "job.expired"
    await ended(store, key, None)
    found = await store.outbox.deliveries(None, 100)
    assert {one.subject: one.event for one in found} == expected
    assert len(found) == len(expected)


async def test_a_claim_is_one_routers_until_it_runs_out(store: SqlStore, key: ApiKey, clock: SteeredClock) -> None:
    await ended(store, key)
    first = await claimed(store)
    assert await store.outbox.claim(TTL_MS, ()) is None
    clock.advance(TTL_MS)
    second = await claimed(store)
    assert (first.delivery.id, first.delivery.attempt) == (second.delivery.id, second.delivery.attempt - 1)
    assert not await store.outbox.record(first, Delivered(200)), "too late"
    assert await store.outbox.record(second, Delivered(204))
    (one,) = await store.outbox.deliveries(DeliveryState.DELIVERED, 10)
    assert (one.status, one.tries) == (204, 2)


async def test_two_routers_never_claim_the_same(database_url: str, store: SqlStore, key: ApiKey) -> None:
    for _ in range(12):
        await ended(store, key)
    async with opened_at(database_url, SteeredClock()) as other:
        claims = await asyncio.gather(*(one.outbox.claim(TTL_MS, ()) for one in (store, other) * 10))
    ids = [claim.delivery.id for claim in claims if claim]
    assert len(ids) == len(set(ids)) == 12


async def test_a_failure_waits_for_its_pause_and_a_busy_host_for_its_place(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    await ended(store, key)
    await store.outbox.record(await claimed(store), Again(5000, 503, "busy"))
    assert await store.outbox.claim(TTL_MS, ()) is None
    await ended(store, key, "https://other.example:8443/x")
    assert (await claimed(store, ("example.com",))).delivery.url.startswith("https://other.example")
    clock.advance(5000)
    assert await store.outbox.claim(TTL_MS, ("example.com", "other.example:8443")) is None
    assert (await claimed(store)).delivery.tries == 2
    assert await store.outbox.lag_ms() == 5000


async def test_410_ends_all_that_goes_to_the_url_of_this_key_until_a_replay(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    other = await store.put_api_key("other", "1" * 64)
    first = await ended(store, key)
    clock.advance(1)
    second = await ended(store, key)
    theirs = await ended(store, other)
    elsewhere = await ended(store, key, "https://example.com/elsewhere")
    await store.outbox.record(await claimed(store), GONE)
    third = await ended(store, key)
    dead = {one.subject: one for one in await store.outbox.deliveries(DeliveryState.DEAD, 10)}
    assert set(dead) == {first.id, second.id, third.id}
    assert "replay the delivery to use this URL again" in (dead[third.id].detail or "")
    assert {(await claimed(store)).delivery.subject for _ in range(2)} == {theirs.id, elsewhere.id}
    replayed = await store.outbox.replay(dead[second.id].id)
    assert replayed
    assert (replayed.state, replayed.tries) == (DeliveryState.PENDING, 0)
    fourth = await ended(store, key)
    assert {(await claimed(store)).delivery.subject for _ in range(2)} == {second.id, fourth.id}


async def test_the_dead_are_replayed_together(store: SqlStore, key: ApiKey) -> None:
    for _ in range(3):
        await ended(store, key)
    for verdict in (Dead(500, "given up"), Dead(None, "given up"), Delivered(200)):
        await store.outbox.record(await claimed(store), verdict)
    assert await store.outbox.replay_dead() == 2
    assert (await store.outbox.counts())[DeliveryState.PENDING] == 2
    assert await store.outbox.replay("msg_none") is None


async def test_a_secret_is_drawn_once_and_an_old_one_signs_along_for_a_while(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    await ended(store, key)
    (drawn,) = (await claimed(store)).secrets
    assert list(await store.outbox.secrets(key.id)) == [drawn]
    clock.advance(1)
    new = list(await store.outbox.rotate(key.id, 1000))
    assert (len(new), new[1]) == (2, drawn)
    assert list(await store.outbox.secrets(key.id)) == new
    clock.advance(1000)
    assert list(await store.outbox.secrets(key.id)) == new[:1]
    assert drawn not in repr(await store.outbox.secrets((await store.put_api_key("other", "1" * 64)).id))


async def test_two_routers_that_look_for_a_first_secret_at_once_have_one(
    store: SqlStore, database_url: str, clock: SteeredClock
) -> None:
    async with opened_at(database_url, clock) as other:
        for number in range(10):
            key = await store.put_api_key(f"k{number}", f"{number:064}")
            drawn = await asyncio.gather(*(one.outbox.secrets(key.id) for one in (store, other) * 3))
            assert len({tuple(secrets) for secrets in drawn}) == 1


async def test_what_ended_long_ago_is_forgotten_bit_by_bit_and_nothing_else_is(
    store: SqlStore, key: ApiKey, clock: SteeredClock
) -> None:
    for _ in range(3):
        await ended(store, key)
        await store.outbox.record(await claimed(store), Delivered(200))
    clock.advance(1001)
    await ended(store, key)
    assert [await store.outbox.forget_ended(1000, 2) for _ in range(3)] == [2, 1, 0]
    assert [one.state for one in await store.outbox.deliveries(None, 10)] == [DeliveryState.PENDING]


@dataclass
class Expected:
    url: str
    state: DeliveryState
    due: int
    attempt: int = 0
    before: int = 0
    leased_until: int = 0


class Deliveries(StoreMachine):
    """Against a model of a few lines."""

    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self.expected: dict[str, Expected] = {}
        self.gone: set[str] = set()

    @initialize()
    def open(self) -> None:
        self.open_store()

    @precondition(lambda self: len(self.expected) < 5)
    @rule(path=st.sampled_from("ab"))
    def end(self, path: str) -> None:
        self.clock.advance(1)
        url = f"https://{path}.example/"
        job = self.run(ended(self.store, self.key, url))
        state = DeliveryState.DEAD if url in self.gone else DeliveryState.PENDING
        self.expected[f"msg_{job.id[4:]}"] = Expected(url, state, self.clock.ms)

    @rule(target=claims, not_to=st.sampled_from([(), ("a.example",), ("a.example", "b.example")]))
    def claim(self, not_to: tuple[str, ...]) -> Claim | MultipleResults[Claim]:
        due = [
            (one.due, name)
            for name, one in self.expected.items()
            if one.state is DeliveryState.PENDING
            and one.due <= self.clock.ms
            and one.leased_until <= self.clock.ms
            and one.url[8:-1] not in not_to
        ]
        found = self.run(self.store.outbox.claim(TTL_MS, not_to))
        if not due:
            assert found is None
            return multiple()
        assert found
        assert found.delivery.id == min(due)[1], "not the one that is due longest"
        one = self.expected[found.delivery.id]
        one.attempt += 1
        one.leased_until = self.clock.ms + TTL_MS
        assert (found.delivery.attempt, found.delivery.tries) == (one.attempt, one.attempt - one.before)
        return found

    @rule(
        claim=claims,
        verdict=st.sampled_from([Delivered(200), Again(0, 500, "x"), Again(700, None, "x"), Dead(500, "x"), GONE]),
    )
    def record(self, claim: Claim, verdict: Verdict) -> None:
        one = self.expected[claim.delivery.id]
        held = one.state is DeliveryState.PENDING and one.attempt == claim.delivery.attempt
        assert self.run(self.store.outbox.record(claim, verdict)) is held
        if not held:
            return
        one.leased_until = 0
        match verdict:
            case Delivered():
                one.state = DeliveryState.DELIVERED
            case Again(pause_ms):
                one.due = self.clock.ms + pause_ms
            case Dead(_, _, gone):
                one.state = DeliveryState.DEAD
                if gone:
                    self.gone.add(one.url)
                    for other in self.expected.values():
                        if other.url == one.url and other.state is DeliveryState.PENDING:
                            other.state, other.leased_until = DeliveryState.DEAD, 0

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        one = self.expected[name]
        assert self.run(self.store.outbox.replay(name))
        one.attempt += 1
        one.before, one.state, one.due, one.leased_until = one.attempt, DeliveryState.PENDING, self.clock.ms, 0
        self.gone.discard(one.url)

    @rule(ms=st.sampled_from([1, 699, 700, TTL_MS - 1, TTL_MS, TTL_MS + 1]))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms)

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "key"):
            return
        found = {one.id: one.state for one in self.run(self.store.outbox.deliveries(None, 100))}
        assert found == {name: one.state for name, one in self.expected.items()}


def test_deliveries_follow_the_model_in_any_order(new_database: NewDatabase) -> None:
    class OnNewDatabase(Deliveries):
        def __init__(self) -> None:
            super().__init__(new_database())

    run_state_machine_as_test(
        OnNewDatabase,
        settings=settings(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
