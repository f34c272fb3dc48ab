"""A router that stops or is killed: the next one on the same database finishes every job, and none twice."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from router.contract import JobState, WorkerHealth
from router.jobs import AttemptEnd
from tests.emulators.pace import Pace
from tests.emulators.paced_process import ROOT, PacedProcess, paced_worker
from tests.integration.router.core_rig import POOL, SLOW, brisk, ends, eventually, rig
from tests.stores import request

JOBS = 50


async def test_a_router_that_stops_and_comes_back_joins_what_runs_and_wastes_no_image(tmp_path: Path) -> None:
    async with paced_worker(SLOW) as worker:
        async with rig(tmp_path) as before:
            await before.register("a", worker)
            job = await before.submit()
            await before.started(job, worker)
        async with rig(tmp_path) as after:
            ended = await after.ended(job)
        assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
        assert (await worker.ledger()).started == [f"{job.id}.1"]


async def test_what_a_worker_can_do_is_known_before_it_has_answered_the_next_router(tmp_path: Path) -> None:
    async with paced_worker() as worker, rig(tmp_path) as before:
        await before.register("a", worker)
        await before.believed("a", WorkerHealth.READY)
        said = before.view("a")
    async with rig(tmp_path) as after:
        known = after.view("a")
    assert said.model
    assert (known.model, known.tier, known.max_pixels) == (said.model, said.tier, said.max_pixels)


async def test_a_worker_with_a_joined_generation_leaves_what_waits_to_those_that_are_free(tmp_path: Path) -> None:
    # Long enough that the second place on it does not open while the other one is registered.
    async with paced_worker(Pace(step_s=0.5, heartbeat_s=0.2)) as busy, paced_worker() as free:
        async with rig(tmp_path) as before:
            await before.register("busy", busy)
            running = await before.submit()
            await before.started(running, busy)
            waiting = await before.submit()
        async with rig(tmp_path) as after:
            await after.believed("busy", WorkerHealth.READY)
            await after.register("free", free)
            ended = await after.ended(waiting)
            assert after.view("busy").running == 1
            assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
            assert (await free.ledger()).fetched == [f"{waiting.id}.1"]
            assert (await after.ended(running)).attempt == 1
            assert (await after.ended(await after.submit())).state is JobState.SUCCEEDED


async def test_an_image_that_was_made_while_no_router_was_there_for_longer_than_a_lease_is_fetched(
    tmp_path: Path,
) -> None:
    async with paced_worker(SLOW) as worker:
        async with rig(tmp_path) as before:
            await before.register("a", worker)
            job = await before.submit()
            await before.started(job, worker)
        await asyncio.sleep(brisk(tmp_path).lease_ttl_ms / 1000 + 0.5)
        async with rig(tmp_path) as after:
            ended = await after.ended(job)
        assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
        assert (await worker.ledger()).started == [f"{job.id}.1"]


async def test_a_job_whose_router_and_worker_both_went_is_given_anew(tmp_path: Path) -> None:
    async with paced_worker() as other:
        async with paced_worker(SLOW) as worker, rig(tmp_path) as before:
            await before.register("a", worker)
            job = await before.submit()
            await before.started(job, worker)
        async with rig(tmp_path) as after:
            await after.register("b", other)
            ended = await after.ended(job)
            assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
            assert await ends(after) == {AttemptEnd.LOST: 1, AttemptEnd.FINISHED: 1}


async def test_a_stored_token_that_no_header_can_carry_keeps_no_router_from_starting(tmp_path: Path) -> None:
    async with paced_worker() as worker:
        async with rig(tmp_path) as before:
            await before.core.store.put_worker("a", worker.url, "é" * 20, POOL)
        async with rig(tmp_path) as after:
            await after.believed("a", WorkerHealth.BROKEN)
            await after.register("a", worker)
            assert (await after.ended(await after.submit())).state is JobState.SUCCEEDED


async def test_a_killed_routers_jobs_all_finish_and_none_twice(tmp_path: Path) -> None:
    async with paced_worker(Pace(step_s=0.02)) as a, paced_worker(Pace(step_s=0.02)) as b:
        async with rig(tmp_path) as first:
            for name, worker in (("a", a), ("b", b)):
                await first.register(name, worker)
            jobs = [await first.submit(request(seed=seed, steps=4)) for seed in range(JOBS)]
        for part in (10, 25):
            async with core_process(tmp_path) as router:
                await made(part, (a, b))
                router.kill()
        async with rig(tmp_path) as last:
            ended = [await last.ended(job) for job in jobs]
            attempts = (await last.core.store.attempt_counts())[POOL]
        assert {job.state for job in ended} == {JobState.SUCCEEDED}
        assert attempts[AttemptEnd.FINISHED] == JOBS, "one commit a job"
        stored = {path for path in (tmp_path / "artifacts").rglob("job_*") if path.is_file()}
        named = {tmp_path / "artifacts" / job.image.path for job in ended if job.image is not None}
        assert stored == named, "one file a job, and no other"
        assert len(named) == JOBS
        begun = (await a.ledger()).started + (await b.ledger()).started
        assert len(begun) == len(set(begun)), "the same attempt was made twice"


async def made(count: int, workers: tuple[PacedProcess, ...]) -> None:
    """Wait until the workers have made so many images altogether."""

    async def enough() -> bool:
        return sum([len((await worker.ledger()).finished) for worker in workers]) >= count

    await eventually(enough, f"{count} images were never made")


@asynccontextmanager
async def core_process(folder: Path) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.router.core_process", str(folder)),
        cwd=ROOT,
        stdout=DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
