"""What keeps everybody from renewing leases for longer than they run: no image is made a second time for it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from router.contract import JobState
from router.fronts import Silences
from router.jobs import AttemptEnd, Lease
from router.notices import Notices
from router.queue.embedded import EmbeddedQueue
from router.store import Renewal
from router.store.clock import database_clock
from router.store.sql import SqlStore
from router.sweeper import keep_sweeping
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.core_rig import POOL, SLOW, brisk, ends, eventually, rig
from tests.integration.router.test_core_restart import core_process
from tests.small_disk import small_disk
from tests.stores import opened_store, request

LEASE_S = brisk(Path()).lease_ttl_ms / 1000
TTL_MS = 2000


async def test_a_disk_that_is_full_for_longer_than_a_lease_costs_no_image(a: PacedProcess) -> None:
    """It holds the database and the artifacts, as by default: neither a renewal nor the image can be written."""
    await a.pace(Pace(step_s=0.02))
    with small_disk("16m") as disk:
        async with rig(disk.folder) as house:
            await house.register("a", a)
            jobs = [await house.submit() for _ in range(3)]
            await house.started(jobs[0], a)
            ballast = await asyncio.to_thread(disk.fill)
            await asyncio.sleep(2 * LEASE_S)
            ballast.unlink()
            for job in jobs:
                ended = await house.ended(job)
                assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
            assert await ends(house) == {AttemptEnd.FINISHED: 3}
            assert (await a.ledger()).finished == [f"{job.id}.1" for job in jobs]


async def test_a_router_that_stood_still_for_longer_than_a_lease_goes_on_where_it_was(
    a: PacedProcess, tmp_path: Path
) -> None:
    await a.pace(SLOW)
    async with rig(tmp_path) as house:
        await house.register("a", a)
        job = await house.submit()
        await house.started(job, a)
    async with core_process(tmp_path) as router, opened_store(tmp_path, database_clock) as looking:

        async def taken_up() -> bool:
            return (await a.ledger()).asked > 1

        await eventually(taken_up, "the router never joined what ran")
        router.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 1)
        router.send_signal(signal.SIGCONT)

        async def ended() -> bool:
            seen = await looking.job(job.id)
            return seen is not None and seen.state is JobState.SUCCEEDED

        await eventually(ended, "the job never ended")
        assert (await looking.attempt_counts())[POOL] == {AttemptEnd.FINISHED: 1}


@asynccontextmanager
async def swept(folder: Path) -> AsyncIterator[tuple[SqlStore, Lease]]:
    """A store that is swept ten times a second, and a lease on it that nobody renews."""
    async with opened_store(folder, database_clock) as store:
        await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
        await store.add_job((await store.put_api_key("default", "0" * 64)).id, POOL, request())
        lease = await store.lease_next("a", TTL_MS)
        assert lease is not None
        sweeping = asyncio.create_task(keep_sweeping(store, Notices(), EmbeddedQueue(), TTL_MS, 0.1, Silences(12)))
        try:
            yield store, lease
        finally:
            sweeping.cancel()


async def test_a_lease_that_ran_out_just_as_the_disk_had_room_again_may_still_be_renewed() -> None:
    with small_disk("4m") as disk:
        async with swept(disk.folder) as (store, lease):
            ballast = await asyncio.to_thread(disk.fill)
            await asyncio.sleep(0.5)
            ballast.unlink()  # before the lease has run out: no sweep has found anything to do
            await asyncio.sleep(TTL_MS / 1000)
            assert await store.renew(lease, TTL_MS) is Renewal.HELD


async def test_a_lease_that_ran_out_while_the_router_stood_still_may_be_renewed(tmp_path: Path) -> None:
    async with swept(tmp_path) as (store, lease):
        await asyncio.sleep(0.3)
        time.sleep(TTL_MS / 1000)  # noqa: ASYNC251 - the whole process does
        await asyncio.sleep(0.5)
        assert await store.renew(lease, TTL_MS) is Renewal.HELD


async def test_a_lease_that_nobody_renews_is_taken(tmp_path: Path) -> None:
    async with swept(tmp_path) as (store, lease):

        async def taken() -> bool:
            job = await store.job(lease.job_id)
            return job is not None and job.state is JobState.QUEUED

        await eventually(taken, "nobody swept it")
        assert await store.renew(lease, TTL_MS) is Renewal.LOST
