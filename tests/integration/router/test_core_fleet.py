"""Which workers get jobs, and what becomes of jobs when workers come, drain, move and go."""

from __future__ import annotations

import asyncio

import pytest

from router.contract import JobState, WorkerHealth
from router.errors import PoolUnavailableError, QueueFullError
from router.jobs import AttemptEnd
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.core_rig import POOL, SLOW, Rig, ends
from worker.contract import WorkerState


async def test_another_keys_job_is_nobodys(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    job = await house.ended(await house.submit())
    stranger = await house.core.store.put_api_key("stranger", "1" * 64)
    assert await house.core.service.get(stranger, job.id) is None
    assert await house.core.service.cancel(stranger, job.id) is None
    assert await house.core.service.get(house.key, job.id) == job


async def test_a_pool_without_workers_takes_no_jobs(house: Rig) -> None:
    with pytest.raises(PoolUnavailableError, match="pool interactive: no worker is registered") as caught:
        await house.submit()
    assert caught.value.retry_after_s > 0


async def test_a_pool_whose_workers_all_drain_takes_no_jobs(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    await house.core.fleet.drain("a")
    with pytest.raises(PoolUnavailableError):
        await house.submit()


async def test_a_job_waits_for_a_worker_that_is_loading(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(state=WorkerState.LOADING))
    await house.register("a", a)
    await house.believed("a", WorkerHealth.LOADING)
    job = await house.submit()
    assert house.core.fleet.ready_pools() == []
    await a.pace(Pace())
    assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert house.core.fleet.ready_pools() == [POOL]


async def test_a_full_queue_takes_no_more(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(state=WorkerState.LOADING))
    await house.register("a", a)
    for _ in range(100):
        await house.submit()
    with pytest.raises(QueueFullError, match="100 jobs already wait") as caught:
        await house.submit()
    assert caught.value.retry_after_s > 0


async def test_a_draining_worker_finishes_what_it_runs_and_takes_no_more(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(SLOW)
    await house.register("a", a)
    running = await house.submit()
    await house.started(running, a)
    await house.register("b", b)
    view = await house.core.fleet.drain("a")
    assert view is not None
    assert view.draining
    for job in [running, *[await house.submit() for _ in range(5)]]:
        assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert (await a.ledger()).fetched == [f"{running.id}.1"]


async def test_a_removed_workers_job_goes_back_to_the_queue_at_once(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(Pace(step_s=60, heartbeat_s=0.2))
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    await house.register("b", b)
    await house.core.fleet.remove("a")
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert await ends(house) == {AttemptEnd.LOST: 1, AttemptEnd.FINISHED: 1}
    assert [view.name for view in house.core.fleet.views()] == ["b"]


async def test_registering_again_with_the_same_disturbs_nothing(house: Rig, a: PacedProcess) -> None:
    await a.pace(SLOW)
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    await house.register("a", a)
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)


async def test_a_worker_that_moved_is_driven_at_its_new_address(house: Rig, a: PacedProcess, b: PacedProcess) -> None:
    await house.register("a", a)
    await house.ended(await house.submit())
    await a.kill()
    await house.register("a", b)
    assert (await house.ended(await house.submit())).state is JobState.SUCCEEDED
    assert len((await b.ledger()).fetched) == 1


async def test_a_wrong_token_is_told_to_the_operator_and_costs_no_job(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a, token="not-the-workers-token")
    job = await house.submit()
    await house.believed("a", WorkerHealth.BROKEN)
    assert house.view("a").reason == "worker a: wrong token; register it again with its own token"
    await house.register("a", a)
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)


async def test_a_broken_worker_gets_no_job(house: Rig, a: PacedProcess, b: PacedProcess) -> None:
    await a.pace(Pace(state=WorkerState.BROKEN))
    await house.register("a", a)
    await house.believed("a", WorkerHealth.BROKEN)
    await house.register("b", b)
    for job in [await house.submit() for _ in range(5)]:
        assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert (await a.ledger()).asked == 0
    assert house.view("a").reason == "told to be broken"


async def test_pools_count_workers_and_jobs(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    await asyncio.gather(*[house.ended(await house.submit()) for _ in range(3)])
    (pool,) = await house.core.fleet.pools()
    assert (pool.name, pool.workers, pool.ready, pool.succeeded, pool.queued) == (POOL, 1, 1, 3, 0)
