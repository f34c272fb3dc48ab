"""Jobs that their owners call off, and attempts that are called off for other reasons."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from router.contract import JobState
from router.jobs import AttemptEnd, Job
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.core_rig import SLOW, Rig, ends, eventually
from tests.stores import SteeredClock, opened_store
from worker.contract import WorkerState


async def test_a_job_that_waits_is_cancelled_at_once(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(state=WorkerState.LOADING))
    await house.register("a", a)
    job = await house.submit()
    cancelled = await house.core.service.cancel(house.key, job.id)
    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED
    assert (await a.ledger()).asked == 0


async def test_who_waits_for_a_fresh_job_after_others_had_the_news_of_its_end_has_it_too(
    house: Rig, a: PacedProcess
) -> None:
    await a.pace(Pace(state=WorkerState.LOADING))
    await house.register("a", a)
    job = await house.submit()
    async with house.core.notices.subscribe(job.id):
        await house.core.service.cancel(house.key, job.id)
        async with asyncio.timeout(10):
            assert (await house.core.service.wait(job.id, fresh=True)).state is JobState.CANCELLED


async def test_a_jobs_end_is_published_once_however_often_it_is_cancelled(house: Rig, a: PacedProcess) -> None:
    heard: list[Job] = []
    house.core.notices.listen(heard.append)
    await a.pace(Pace(state=WorkerState.LOADING))
    await house.register("a", a)
    job = await house.submit()
    cancelled = await asyncio.gather(*(house.core.service.cancel(house.key, job.id) for _ in range(5)))
    assert {seen.state for seen in cancelled if seen is not None} == {JobState.CANCELLED}
    assert [seen.state for seen in heard] == [JobState.CANCELLED]


async def test_a_job_that_another_router_ended_is_not_published_as_ended_here(
    house: Rig, a: PacedProcess, tmp_path: Path
) -> None:
    heard: list[Job] = []
    house.core.notices.listen(heard.append)
    await a.pace(SLOW)
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    async with opened_store(tmp_path, SteeredClock(int(time.time() * 1000) + 3_600_000)) as another_routers:
        await another_routers.cancel_job(job.id)
        assert [swept.state for swept in await another_routers.sweep()] == [JobState.CANCELLED]
    assert (await house.ended(job)).state is JobState.CANCELLED

    async def called_off() -> bool:
        return f"{job.id}.1" in (await a.ledger()).cancelled

    await eventually(called_off, "the worker was never told")
    assert [seen for seen in heard if seen.state.ended] == []


async def test_a_job_that_runs_is_cancelled_between_steps_and_the_worker_is_free_again(
    house: Rig, a: PacedProcess
) -> None:
    await a.pace(Pace(step_s=0.5, heartbeat_s=0.2))
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    begun = time.monotonic()
    await house.core.service.cancel(house.key, job.id)
    assert (await house.ended(job)).state is JobState.CANCELLED
    assert time.monotonic() - begun < 0.9, "a renewal later: nobody hurried"
    await a.pace(Pace())
    assert (await house.ended(await house.submit())).state is JobState.SUCCEEDED
    ledger = await a.ledger()
    assert (ledger.cancelled[-1], len(ledger.finished)) == (f"{job.id}.1", 1)


async def test_an_attempt_whose_lease_was_taken_away_is_called_off(house: Rig, a: PacedProcess, tmp_path: Path) -> None:
    await a.pace(SLOW)
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    async with opened_store(tmp_path, SteeredClock(int(time.time() * 1000) + 3_600_000)) as another_routers:
        assert [swept.id for swept in await another_routers.sweep()] == [job.id]
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert await ends(house) == {AttemptEnd.EXPIRED: 1, AttemptEnd.FINISHED: 1}
    assert f"{job.id}.1" in (await a.ledger()).cancelled
