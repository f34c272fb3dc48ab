"""Wake-ups: who is woken, how often, and what is kept."""

from __future__ import annotations

import asyncio

from router.queue import EmbeddedQueue

LONG_S = 30.0
POOL = "interactive"


async def waiting(queue: EmbeddedQueue, pool: str = POOL, timeout_s: float = LONG_S) -> asyncio.Task[None]:
    task = asyncio.create_task(queue.wait(pool, timeout_s))
    await asyncio.sleep(0)  # let it begin to wait
    return task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_announcement_wakes_the_one_that_waits_longest_and_no_other() -> None:
    queue = EmbeddedQueue()
    first, second = await waiting(queue), await waiting(queue)
    queue.announce(POOL)
    await first
    await settle()
    assert not second.done()
    queue.announce(POOL)
    await second


async def test_an_announcement_that_finds_nobody_is_kept_for_the_next_who_comes() -> None:
    queue = EmbeddedQueue()
    queue.announce(POOL)
    await asyncio.wait_for(queue.wait(POOL, LONG_S), 1)


async def test_kept_announcements_do_not_pile_up() -> None:
    queue = EmbeddedQueue()
    for _ in range(1000):
        queue.announce(POOL)
    await queue.wait(POOL, LONG_S)
    second = await waiting(queue)
    await settle()
    assert not second.done()
    queue.announce(POOL)
    await second


async def test_another_pools_announcement_wakes_nobody() -> None:
    queue = EmbeddedQueue()
    waiter = await waiting(queue)
    queue.announce("batch")
    await settle()
    assert not waiter.done()
    queue.announce(POOL)
    await waiter


async def test_waiting_ends_by_itself() -> None:
    await asyncio.wait_for(EmbeddedQueue().wait(POOL, 0.01), 5)


async def test_a_wake_up_whose_receiver_is_cancelled_goes_to_the_next() -> None:
    queue = EmbeddedQueue()
    first, second = await waiting(queue), await waiting(queue)
    queue.announce(POOL)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    await asyncio.wait_for(second, 1)
