"""How long finished generations are kept."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.scripted import request
from worker.generation import Generation, Kept

KEEP_S = 100.0


def ended(generation_id: str, size: int) -> Generation:
    generation = Generation(generation_id, request(), 0.0)
    generation.image = bytes(size)
    return generation


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 60)), max_size=25),
    count=st.integers(1, 5),
    bytes_max=st.integers(1, 100),
)
def test_the_bounds_hold_and_the_newest_always_stays(
    sizes: list[tuple[int, float]], count: int, bytes_max: int
) -> None:
    kept, now = Kept(KEEP_S, count=count, bytes_max=bytes_max), 0.0
    put: dict[str, tuple[int, float]] = {}
    for number, (size, pause) in enumerate(sizes):
        now += pause
        kept.add(ended(f"a.{number}", size), now)
        put[f"a.{number}"] = size, now
        assert kept.get(f"a.{number}", now)
        there = [name for name in put if kept.get(name, now)]
        assert len(there) == len(kept) <= count
        assert kept.bytes == sum(put[name][0] for name in there)
        assert kept.bytes <= bytes_max or len(there) == 1
        assert all(now - put[name][1] <= KEEP_S for name in there)
        assert there == list(put)[-len(there) :]
        assert all(kept.forgot(name) == (name not in there) for name in put)


def test_an_id_that_was_never_kept_was_not_forgotten() -> None:
    assert not Kept(KEEP_S).forgot("a.1")


def test_an_image_counts_as_unfetched_until_it_is_fetched_or_old() -> None:
    kept, first, second = Kept(KEEP_S), ended("a.1", 1), ended("a.2", 1)
    kept.add(first, 10.0)
    kept.add(second, 20.0)
    assert kept.oldest_unfetched(since=0.0) == 10.0
    assert kept.oldest_unfetched(since=15.0) == 20.0
    second.fetched = True
    assert kept.oldest_unfetched(since=15.0) is None


async def test_a_follower_of_a_silent_generation_hears_heartbeats() -> None:
    generation = Generation("a.1", request(), 0.0)
    follower = generation.follow(heartbeat_s=0.01)
    async with asyncio.timeout(10):
        assert [await anext(follower), await anext(follower)] == [None, None]
    await follower.aclose()
