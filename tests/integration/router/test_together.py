"""Two routers and two consumers on one PostgreSQL and one Redis, behind nginx: what one process may be without."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from router.contract import JobRequest, JobState, WorkerHealth
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.served import until
from tests.integration.router.together import Together, together
from tests.postgres import Postgres
from tests.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

PACE = Pace(step_s=0.02, heartbeat_s=0.2)
SMALL = JobRequest(prompt="a red fox", width=256, height=256, steps=5)
AT_ONCE = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers() -> AsyncIterator[list[PacedProcess]]:
    async with paced_worker(PACE) as a, paced_worker(PACE) as b:
        yield [a, b]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker() -> AsyncIterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    postgres_server: Postgres, postgres_template: str, broker: RedisServer, workers: list[PacedProcess]
) -> AsyncIterator[Together]:
    async with together(postgres_server.create(postgres_template), broker.url) as made:
        for name, worker in zip("ab", workers, strict=True):
            await made.use(name, worker.url)
        yield made


def seeded(seed: int) -> JobRequest:
    return SMALL.model_copy(update={"seed": seed})


async def images(house: Together, count: int) -> None:
    """So many synchronous requests through the edge; each is answered with its image, at the first try."""

    async def one(seed: int) -> int:
        async with house.http() as http:
            asked = {"prompt": "a red fox", "width": 256, "height": 256, "steps": 5}
            return (await http.post("/generate", json=asked)).status_code

    assert set(await asyncio.gather(*(one(seed) for seed in range(count)))) == {200}


async def test_requests_to_either_router_are_driven_by_the_consumers(house: Together) -> None:
    await images(house, 12)
    for router in house.routers:
        async with router.client() as client:
            job = await client.wait((await client.submit(seeded(1))).id)
            assert job.state is JobState.SUCCEEDED


async def test_every_router_knows_every_worker_and_what_it_does(house: Together) -> None:
    for router in house.routers:
        async with router.admin() as admin:
            assert {view.name: view.health for view in await admin.workers()} == dict.fromkeys("ab", WorkerHealth.READY)
            (pool,) = [pool for pool in await admin.pools() if pool.name == "interactive"]
            assert (pool.workers, pool.ready) == (2, 2)


async def test_a_job_that_one_router_took_is_watched_step_by_step_at_the_other(
    house: Together, workers: list[PacedProcess]
) -> None:
    for worker in workers:
        await worker.pace(Pace(step_s=0.2, heartbeat_s=0.2))
    try:
        async with house.routers[0].client() as here, house.routers[1].client() as there:
            job = await here.submit(seeded(2))
            steps = set[int]()

            async def watched() -> bool:
                view = await there.job(job.id)
                if view.progress is not None:
                    steps.add(view.progress.step)
                return view.state.ended

            await until(watched, "the job ends")
            assert len(steps - {0}) >= 2, "the other router heard nothing of its steps"
    finally:
        for worker in workers:
            await worker.pace(PACE)


async def test_a_job_that_runs_is_cancelled_from_any_router(house: Together, workers: list[PacedProcess]) -> None:
    for worker in workers:
        await worker.pace(Pace(step_s=5, heartbeat_s=0.2))
    try:
        async with house.routers[0].client() as here, house.routers[1].client() as there:
            job = await here.submit(seeded(3))

            async def runs() -> bool:
                return (await there.job(job.id)).state is JobState.RUNNING

            await until(runs, "the job runs")
            await there.cancel(job.id)
            assert (await here.wait(job.id)).state is JobState.CANCELLED
    finally:
        for worker in workers:
            await worker.pace(PACE)


async def test_a_flushed_broker_loses_nothing(house: Together, broker: RedisServer) -> None:
    waiting = asyncio.create_task(images(house, 20))
    for _ in range(5):
        broker.flush()
        await asyncio.sleep(0.05)  # somewhere between them
    await waiting


async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(house: Together, broker: RedisServer) -> None:
    waiting = asyncio.create_task(images(house, 20))
    await asyncio.to_thread(broker.stop)
    async with house.client() as client:
        jobs = [await client.submit(seeded(seed)) for seed in range(4)]
        for job in jobs:
            assert (await client.wait(job.id)).state is JobState.SUCCEEDED, "the store alone is enough"
    await asyncio.to_thread(broker.start)
    await waiting
    await images(house, 4)


async def test_a_consumer_that_is_at_work_outlives_its_broker(
    house: Together, broker: RedisServer, workers: list[PacedProcess]
) -> None:
    """It holds messages then, and cannot give them back."""
    for worker in workers:
        await worker.pace(Pace(step_s=0.4, heartbeat_s=0.2))
    try:
        async with house.client() as client:
            jobs = [await client.submit(seeded(seed)) for seed in range(20, 26)]
            await asyncio.sleep(0.5)
            await asyncio.to_thread(broker.stop, signal.SIGKILL)
            for job in jobs:
                assert (await client.wait(job.id)).state is JobState.SUCCEEDED
        await asyncio.to_thread(broker.start)
        await images(house, 4)
        for consumer in house.consumers:
            assert consumer.process is not None
            assert consumer.process.returncode is None, consumer.log
            assert "Unrecoverable" not in consumer.log, consumer.log
    finally:
        for worker in workers:
            await worker.pace(PACE)


async def test_a_rolling_restart_of_everything_drops_no_request(house: Together) -> None:
    done, stopped = 0, asyncio.Event()

    async def client(number: int) -> None:
        nonlocal done
        async with house.http() as http:
            while not stopped.is_set():
                asked = {"prompt": "a red fox", "width": 256, "height": 256, "steps": 5}
                answer = await http.post("/generate", json=asked)
                assert answer.status_code == 200, answer.text
                done += 1

    async with asyncio.TaskGroup() as clients:
        for number in range(AT_ONCE):
            clients.create_task(client(number))
        for pair in zip(house.routers, house.consumers, strict=True):
            assert await asyncio.gather(*(process.stop() for process in pair)) == [0, 0]
            await asyncio.gather(*(process.start() for process in pair))
        stopped.set()
    assert done > AT_ONCE


async def test_a_killed_consumers_jobs_are_joined_by_the_next_of_its_name(
    house: Together, workers: list[PacedProcess]
) -> None:
    for worker in workers:
        await worker.pace(Pace(step_s=0.4, heartbeat_s=0.2))
    try:
        async with house.client() as client:
            jobs = [await client.submit(seeded(seed)) for seed in (11, 12)]

            async def run() -> bool:
                return all([(await client.job(job.id)).state is JobState.RUNNING for job in jobs])

            await until(run, "both run")
            for consumer in house.consumers:
                assert consumer.process is not None
                consumer.process.kill()
                await consumer.process.wait()
            for consumer in house.consumers:
                await consumer.start()
            for job in jobs:
                ended = await client.wait(job.id)
                assert ended.state is JobState.SUCCEEDED
    finally:
        for worker in workers:
            await worker.pace(PACE)
