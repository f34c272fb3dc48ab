"""Who asks often is not looked up each time; what becomes of a key meanwhile, here and at another router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from router.callers import KNOWN_FOR_S, Callers
from router.store.sql import SqlStore
from tests.stores import SteeredClock, opened_at

SHA256 = "a" * 64


class Hours:
    """A monotonic clock that the test moves, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def other(database_url: str, clock: SteeredClock) -> AsyncIterator[SqlStore]:
    """Another router's, on the same database."""
    async with opened_at(database_url, clock) as opened:
        yield opened


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
async def callers(store: SqlStore, hours: Hours) -> Callers:
    await store.put_api_key("team", SHA256)
    return Callers(store, hours)


async def test_a_key_revoked_elsewhere_is_let_in_for_a_second_at_most(
    callers: Callers, other: SqlStore, hours: Hours
) -> None:
    assert await callers.of(SHA256) is not None
    await other.revoke_api_key("team")
    hours.now += KNOWN_FOR_S / 2
    assert await callers.of(SHA256) is not None
    hours.now += KNOWN_FOR_S / 2
    assert await callers.of(SHA256) is None
    assert await callers.of(SHA256) is None


async def test_asking_again_does_not_make_it_last(callers: Callers, other: SqlStore, hours: Hours) -> None:
    for _ in range(3):
        assert await callers.of(SHA256) is not None
        hours.now += KNOWN_FOR_S * 0.4
    await other.revoke_api_key("team")
    assert await callers.of(SHA256) is None


async def test_a_key_revoked_here_is_refused_at_once(callers: Callers, store: SqlStore) -> None:
    assert await callers.of(SHA256) is not None
    await store.revoke_api_key("team")
    callers.changed()
    assert await callers.of(SHA256) is None


async def test_what_was_read_before_a_change_is_not_kept(callers: Callers, other: SqlStore) -> None:
    reading = asyncio.create_task(callers.of(SHA256))
    await asyncio.sleep(0)
    callers.changed()
    assert await reading is not None, "it was read before"
    await other.revoke_api_key("team")
    assert await callers.of(SHA256) is None


async def test_a_key_that_nobody_has_is_asked_for_each_time_and_found_when_it_is_made(
    callers: Callers, other: SqlStore
) -> None:
    assert await callers.of("b" * 64) is None
    await other.put_api_key("new", "b" * 64)
    assert await callers.of("b" * 64) is not None
