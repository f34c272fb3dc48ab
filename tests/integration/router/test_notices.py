"""What the hub promises to who watches: within one process, and between two that a real Redis joins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from router.contract import JobState, Progress
from router.jobs import AttemptEnd, Job
from router.notices import Notices, look
from router.notices.redis import RedisNotices
from router.store.sql import SqlStore
from tests.redis_server import RedisServer
from tests.stores import SteeredClock, opened_store, request

POOL = "interactive"
LONG_S = 60.0


@dataclass
class Hubs:
    """`here` is where something happens, `there` where somebody watches; they may be the same."""

    store: SqlStore
    here: Notices
    there: Notices

    async def job(self) -> Job:
        key = await self.store.put_api_key("default", "0" * 64)
        return await self.store.add_job(key.id, POOL, request())


@pytest.fixture(params=["one process", "two processes"])
async def hubs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hubs]:
    async with opened_store(tmp_path, SteeredClock()) as store:
        if request.param == "one process":
            notices = Notices()
            yield Hubs(store, notices, notices)
            return
        server: RedisServer = request.getfixturevalue("shared_redis")
        channel = uuid4().hex
        here, there = RedisNotices(server.url, channel, store), RedisNotices(server.url, channel, store)
        try:
            for hub in (here, there):
                hub.start()
                await asyncio.wait_for(hub.joined.wait(), LONG_S)
            yield Hubs(store, here, there)
        finally:
            await asyncio.gather(here.stop(), there.stop())


async def test_who_watches_learns_a_jobs_end(hubs: Hubs) -> None:
    job = await hubs.job()
    async with hubs.there.subscribe(job.id) as ticks:
        cancelled = await hubs.store.cancel_job(job.id)
        assert cancelled is not None
        hubs.here.publish(cancelled)
        assert (await asyncio.wait_for(anext(ticks), LONG_S)).job == cancelled


async def test_who_watches_learns_its_steps_and_they_are_forgotten_with_the_attempt(hubs: Hubs) -> None:
    job = await hubs.job()
    step = Progress(attempt=1, step=3, steps=20)
    async with hubs.there.subscribe(job.id) as ticks:
        hubs.here.progress(job.id, step)
        assert (await asyncio.wait_for(anext(ticks), LONG_S)).progress == step
        cancelled = await hubs.store.cancel_job(job.id)
        assert cancelled is not None
        hubs.here.publish(cancelled)
        ended = await asyncio.wait_for(anext(ticks), LONG_S)
        assert ended.job == cancelled
    # The job never ran, so its steps are of an attempt that is not over yet; the next standing says that it is.
    hubs.here.forget(job.id, 1)
    hubs.there.over(job.id, JobState.SUCCEEDED, 1)
    assert hubs.there.latest_progress(job.id) is None


async def test_who_drives_hears_that_the_owner_asks_for_something(hubs: Hubs) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    hubs.there.on_ask(heard.put_nowait)
    hubs.here.ask("job_1")
    assert await asyncio.wait_for(heard.get(), LONG_S) == "job_1"


async def test_what_no_notice_told_is_found_by_a_look(hubs: Hubs) -> None:
    job = await hubs.job()
    async with hubs.there.subscribe(job.id) as ticks:
        await hubs.store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
        lease = await hubs.store.lease_next("a", 1000)
        assert lease is not None
        await look(hubs.there, hubs.store)
        seen = (await asyncio.wait_for(anext(ticks), LONG_S)).job
        assert seen is not None
        assert (seen.state, seen.attempt) == (JobState.RUNNING, 1)
        await hubs.store.end_attempt(lease, AttemptEnd.REFUSED, "no")
        await look(hubs.there, hubs.store)
        seen = (await asyncio.wait_for(anext(ticks), LONG_S)).job
        assert seen is not None
        assert seen.state is JobState.FAILED


async def test_what_comes_late_does_not_undo_what_is_known(hubs: Hubs) -> None:
    job = await hubs.job()
    async with hubs.there.subscribe(job.id) as ticks:
        cancelled = await hubs.store.cancel_job(job.id)
        assert cancelled is not None
        hubs.there.found(cancelled)
        hubs.there.found(job)  # read before the cancellation, and told after it
        assert (await asyncio.wait_for(anext(ticks), LONG_S)).job == cancelled
