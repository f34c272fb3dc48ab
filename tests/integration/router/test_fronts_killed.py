"""A router process that is killed while somebody waits at it: what becomes of the jobs that it took on for them."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import httpx
import pytest

from router.contract import JobRequest, JobState
from router.core import open_core
from router.store import JobFilter
from tests.emulators.pace import Pace
from tests.emulators.paced_process import paced_worker
from tests.integration.router.core_rig import brisk
from tests.integration.router.served import ServedRouter, served_router, until

LONG = JobRequest(prompt="a press", width=256, height=256, steps=60)
SMALL = {"prompt": "a", "width": 256, "height": 256, "steps": 2}


async def queued(router: ServedRouter, jobs: int) -> None:
    async with router.admin() as admin:

        async def so() -> bool:
            return sum(pool.queued for pool in await admin.pools()) == jobs

        await until(so, f"{jobs} job(s) wait")


async def test_what_waited_for_a_killed_routers_callers_is_cancelled_by_the_next_router() -> None:
    async with paced_worker(Pace(step_s=0.2)) as worker, served_router() as router:
        await router.use("w-1", worker)
        async with router.client() as client, router.http() as http:
            busy = await client.submit(LONG)
            await queued(router, 0)
            native = await client.submit(LONG)
            await queued(router, 1)
            plain = asyncio.create_task(http.post("/generate", json=SMALL))
            keyed = asyncio.create_task(http.post("/generate", json=SMALL, headers={"Idempotency-Key": "mine"}))
            await queued(router, 3)
            await router.stop(signal.SIGKILL)
            for caller in (plain, keyed):
                with pytest.raises(httpx.TransportError):
                    await caller
        data = router.folder / "data"
        url = f"sqlite+aiosqlite:///{data / 'router.db'}"
        async with open_core(replace(brisk(data), database_url=url, artifacts_root=data / "artifacts")) as core:
            first = await core.store.job(busy.id)
            assert first is not None

            async def cancelled() -> bool:
                ended = await core.store.listed(first.api_key_id, JobFilter(state=JobState.CANCELLED), None, 10)
                return len(ended) == 2

            await until(cancelled, "both are cancelled", within_s=10)
            left = await core.store.jobs([busy.id, native.id])
            assert JobState.CANCELLED not in {job.state for job in left}
        started = (await worker.ledger()).started
        assert all(name.startswith((busy.id, native.id)) for name in started), "no GPU worked for nobody"


async def test_a_request_that_is_repeated_at_the_next_router_is_served_once() -> None:
    again = {"Idempotency-Key": "mine"}
    async with paced_worker(Pace(step_s=0.1)) as worker, served_router() as router:
        await router.use("w-1", worker)
        async with router.client() as client, router.http(timeout_s=60) as http:
            await client.submit(LONG)
            await queued(router, 0)
            keyed = asyncio.create_task(http.post("/generate", json=SMALL, headers=again))
            await queued(router, 1)
            await router.stop(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                await keyed
            await router.start()
        async with router.http(timeout_s=60) as http:
            assert (await http.post("/generate", json=SMALL, headers=again)).status_code == 200
        assert len((await worker.ledger()).finished) == 2, "what was at work, and this, once"
