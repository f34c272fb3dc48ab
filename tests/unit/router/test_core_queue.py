"""Wake-ups within one process: who is woken, how often, and what is kept."""

from __future__ import annotations

import asyncio
from itertools import count

from router.queue import KEPT_MAX, WakeUp
from router.queue.embedded import EmbeddedQueue

LONG_S = 30.0
POOL = "interactive"
_names = count()


async def waiting(queue: EmbeddedQueue, pool: str = POOL, who: str = "") -> asyncio.Task[WakeUp | None]:
    task = asyncio.create_task(queue.wait(pool, who or f"w{next(_names)}", LONG_S))
    await asyncio.sleep(0)  # let it begin to wait
    return task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_announcement_wakes_the_one_that_waits_longest_and_no_other() -> None:
    queue = EmbeddedQueue()
    first, second = await waiting(queue), await waiting(queue)
    queue.announce(POOL)
    assert await first is not None
    await settle()
    assert not second.done()
    queue.announce(POOL)
    assert await second is not None


async def test_as_many_are_woken_as_jobs_are_announced() -> None:
    queue = EmbeddedQueue()
    waiters = [await waiting(queue) for _ in range(5)]
    queue.announce(POOL, jobs=3)
    await settle()
    assert [waiter.done() for waiter in waiters] == [True] * 3 + [False] * 2
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)


async def test_an_announcement_that_finds_nobody_is_kept_for_the_next_who_comes() -> None:
    queue = EmbeddedQueue()
    queue.announce(POOL)
    assert await asyncio.wait_for(queue.wait(POOL, "a", LONG_S), 1) is not None
    assert await queue.wait(POOL, "a", 0) is None


async def test_what_is_kept_is_bounded() -> None:
    queue = EmbeddedQueue()
    queue.announce(POOL, jobs=10 * KEPT_MAX)
    queue.announce(POOL, jobs=10 * KEPT_MAX)
    taken = 0
    while await queue.wait(POOL, "a", 0) is not None:
        taken += 1
    assert taken == KEPT_MAX


async def test_another_pools_announcement_wakes_nobody() -> None:
    queue = EmbeddedQueue()
    waiter = await waiting(queue)
    queue.announce("batch")
    await settle()
    assert not waiter.done()
    queue.announce(POOL)
    await waiter


async def test_waiting_ends_by_itself() -> None:
    assert await asyncio.wait_for(EmbeddedQueue().wait(POOL, "a", 0.01), 5) is None


async def test_a_wake_up_whose_receiver_is_cancelled_goes_to_the_next() -> None:
    queue = EmbeddedQueue()
    first, second = await waiting(queue), await waiting(queue)
    queue.announce(POOL)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    assert await asyncio.wait_for(second, 1) is not None


async def test_a_wake_up_that_one_cannot_use_goes_to_each_other_once_and_is_then_done() -> None:
    queue, ended = EmbeddedQueue(), list[str]()
    a, b = await waiting(queue, who="a"), await waiting(queue, who="b")
    queue.offer(POOL, WakeUp(done=lambda: ended.append("done")))
    for who, waiter in (("a", a), ("b", b)):
        wake_up = await asyncio.wait_for(waiter, 1)
        assert wake_up is not None
        assert ended == []
        again = await waiting(queue, who=who)  # it waits again, having tried
        queue.pass_on(POOL, wake_up, who)
        await settle()
        assert not again.done()
        again.cancel()
    assert ended == ["done"]


async def test_a_wake_up_that_is_still_nobodys_can_be_taken_back() -> None:
    queue, wake_up = EmbeddedQueue(), WakeUp()
    queue.offer(POOL, wake_up)
    assert queue.take_back(POOL, wake_up)
    assert not queue.take_back(POOL, wake_up)
    assert await queue.wait(POOL, "a", 0) is None
