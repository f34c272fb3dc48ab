"""What both queues promise: the one of one process, and Celery on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from celery.contrib.testing.worker import start_worker

from router.queue import Queue, WakeUp
from router.queue.celery import Broker, CeleryQueue, celery_app, follow, queue_name, receiver
from router.queue.embedded import EmbeddedQueue
from tests.redis_server import RedisServer, redis_server

POOL, OTHER = "interactive", "batch"
LONG_S = 60.0
SOON_S = 0.3


@pytest.fixture(params=["embedded", "celery"])
async def queue(request: pytest.FixtureRequest) -> AsyncIterator[Queue]:
    if request.param == "embedded":
        yield EmbeddedQueue()
        return
    server: RedisServer = request.getfixturevalue("shared_redis")
    app = celery_app(Broker(server.url, f"{uuid4().hex}:"))
    made, loop = CeleryQueue(app), asyncio.get_running_loop()
    receiver(app, lambda pool: asyncio.run_coroutine_threadsafe(made.deliver(pool), loop).result())
    queues = ",".join(map(queue_name, (POOL, OTHER)))
    running = start_worker(app, pool="threads", concurrency=8, perform_ping_check=False, queues=queues)
    await asyncio.to_thread(running.__enter__)
    try:
        yield made
    finally:
        made.stop_receiving()
        await asyncio.to_thread(running.__exit__, None, None, None)
        await asyncio.to_thread(made.close)


async def waiting(queue: Queue, who: str, pool: str = POOL) -> asyncio.Task[WakeUp | None]:
    task = asyncio.create_task(queue.wait(pool, who, LONG_S))
    await asyncio.sleep(0)
    return task


async def woken(task: asyncio.Task[WakeUp | None]) -> WakeUp:
    wake_up = await asyncio.wait_for(task, LONG_S)
    assert wake_up is not None
    return wake_up


async def test_one_announcement_wakes_one_waiter(queue: Queue) -> None:
    first, second = await waiting(queue, "a"), await waiting(queue, "b")
    queue.announce(POOL)
    (await woken(first)).done()
    _, still = await asyncio.wait([second], timeout=SOON_S)
    assert still
    queue.announce(POOL)
    (await woken(second)).done()


async def test_as_many_are_woken_as_jobs_are_announced(queue: Queue) -> None:
    waiters = [await waiting(queue, name) for name in "abc"]
    queue.announce(POOL, jobs=3)
    for waiter in waiters:
        (await woken(waiter)).done()


async def test_an_announcement_waits_for_who_comes_a_moment_later(queue: Queue) -> None:
    queue.announce(POOL)
    wake_up = await queue.wait(POOL, "a", LONG_S)
    assert wake_up is not None
    wake_up.done()


async def test_another_pools_announcement_wakes_nobody(queue: Queue) -> None:
    waiter = await waiting(queue, "a")
    queue.announce(OTHER)
    _, still = await asyncio.wait([waiter], timeout=SOON_S)
    assert still
    queue.announce(POOL)
    (await woken(waiter)).done()


async def test_waiting_ends_by_itself(queue: Queue) -> None:
    assert await asyncio.wait_for(queue.wait(POOL, "a", 0.01), LONG_S) is None


async def test_what_one_cannot_use_another_gets_and_each_but_once(queue: Queue) -> None:
    a, b = await waiting(queue, "a"), await waiting(queue, "b")
    queue.announce(POOL)
    queue.pass_on(POOL, await woken(a), "a")
    again = await waiting(queue, "a")
    wake_up = await woken(b)
    queue.pass_on(POOL, wake_up, "b")
    _, still = await asyncio.wait([again], timeout=SOON_S)
    assert still
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


async def test_a_waiter_that_is_cancelled_takes_no_wake_up_along(queue: Queue) -> None:
    first, second = await waiting(queue, "a"), await waiting(queue, "b")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    queue.announce(POOL)
    (await woken(second)).done()


def test_a_new_pool_is_followed_once_the_broker_is_back() -> None:
    with redis_server() as server:
        app = celery_app(Broker(server.url, "x:"))
        server.stop()
        assert not follow(app, "new")
        server.start()
        assert follow(app, "new")
