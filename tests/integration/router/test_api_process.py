"""The router as a process: how it starts, what it refuses to start on, and how it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path

import httpx

from router.contract import INTERACTIVE, JobEvent, JobRequest, JobState, WorkerRegistration
from tests.emulators.pace import Pace
from tests.emulators.paced_process import paced_worker
from tests.integration.router.served import ServedRouter, attempt_to_start, environment, served_router, until
from worker.contract import WorkerState

SLOW = JobRequest(prompt="a press", width=256, height=256, steps=20)


async def _running(router: ServedRouter, jobs: int) -> None:
    async with router.admin() as admin:

        async def so() -> bool:
            pools = await admin.pools()
            return sum(pool.queued + pool.running for pool in pools) == jobs

        await until(so, f"{jobs} job(s) are under way")


async def test_everyone_who_can_enter_the_folder_can_connect_to_the_socket() -> None:
    async with served_router() as router:
        mode = os.lstat(router.socket).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o666


async def test_the_data_is_readable_by_its_owner_alone() -> None:
    async with served_router() as router:
        for path in (router.folder / "data", router.folder / "data" / "router.db"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


async def test_sigterm_ends_the_process_and_takes_the_socket_away() -> None:
    async with served_router() as router:
        assert await router.stop() == 0
        assert not router.socket_exists()
        assert "Traceback" not in router.log


async def test_those_who_wait_at_sigterm_are_told_to_come_back_in_their_dialect() -> None:
    async with paced_worker(Pace(step_s=0.5)) as worker, served_router() as router:
        await router.use("w-1", worker)
        async with router.http() as http:
            seed = asyncio.create_task(http.post("/generate", json={"prompt": "a"}))
            await _running(router, 1)
            images = asyncio.create_task(http.post("/v1/images/generations", json={"prompt": "a"}))
            await _running(router, 2)
            assert await router.stop() == 0
            answers = await asyncio.gather(seed, images)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    assert answers[0].json() == {"detail": "the router is restarting; send the request again"}
    assert answers[1].json()["error"]["type"] == "server_error"


async def test_a_native_job_outlives_the_router_and_its_attempt_is_joined_by_the_next_one() -> None:
    # A lease that a slow machine's restart does not outlast.
    async with paced_worker(Pace(step_s=0.2)) as worker, served_router(LEASE_TTL_S="120") as router:
        await router.use("w-1", worker)
        async with router.client() as client:
            job = await client.submit(SLOW)

            async def begun() -> bool:
                return (await client.job(job.id)).progress is not None

            await until(begun, "the job runs")
            waiting = asyncio.create_task(client.wait(job.id))
            assert await router.stop() == 0
            await router.start()
            ended = await waiting
            assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
            assert len((await worker.ledger()).started) == 1


async def test_an_open_event_stream_ends_at_sigterm() -> None:
    async with paced_worker(Pace(step_s=0.5)) as worker, served_router() as router:
        await router.use("w-1", worker)
        async with router.client() as client, router.http() as http:
            job = await client.submit(SLOW)
            async with http.stream("GET", f"/v1/jobs/{job.id}/events") as stream:
                lines = stream.aiter_lines()
                while not (await anext(lines)).startswith(f"event: {JobEvent.RUNNING}"):
                    pass
                assert await router.stop() == 0
                assert [line async for line in lines if line.startswith("event: ") and "succeeded" in line] == []


async def test_a_killed_routers_socket_is_replaced() -> None:
    async with served_router() as router:
        await router.stop(signal.SIGKILL)
        assert router.socket_exists()
        await router.start()
        async with router.http("") as http:
            assert (await http.get("/healthz")).status_code == 200


async def test_a_living_routers_socket_is_left_alone() -> None:
    async with served_router() as router:
        status, said = await attempt_to_start(router.environment)
        assert (status, f"another router listens on {router.socket}" in said) == (os.EX_CONFIG, True)
        async with router.http("") as http:
            assert (await http.get("/healthz")).status_code == 200


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("a letter")
    status, said = await attempt_to_start(environment(tmp_path, SOCKET=str(file)))
    assert (status, f"{file} is there and is no socket" in said) == (os.EX_CONFIG, True)
    assert file.read_text() == "a letter"


async def test_an_admin_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        described = environment(tmp_path, ADMIN_PORT=port, SOCKET=str(tmp_path / "s"))
        status, said = await attempt_to_start(described)
    assert status == os.EX_CONFIG
    assert f"ADMIN_PORT: cannot listen on 127.0.0.1:{port}: another program listens there" in said


async def test_settings_that_are_wrong_end_it_with_all_of_them_and_no_traceback(tmp_path: Path) -> None:
    wrong = environment(tmp_path, SOCKET="/" + "s" * 120, ADMIN_HOST="0.0.0.0")  # noqa: S104 - refused, that is the test
    status, said = await attempt_to_start(wrong)
    assert status == os.EX_CONFIG
    assert "LETTERPRESS_ROUTER_SOCKET" in said
    assert "LETTERPRESS_ROUTER_ADMIN_HOST" in said
    assert "Traceback" not in said


async def test_a_full_queue_is_503_and_says_when_to_ask_again() -> None:
    async with paced_worker(Pace(step_s=0.5)) as worker, served_router(QUEUE_BOUND="1") as router:
        await router.use("w-1", worker)
        async with router.http() as http:
            answers: list[httpx.Response] = []

            async def full() -> bool:
                answers.append(await http.post("/v1/jobs", json=SLOW.model_dump(mode="json", exclude_none=True)))
                return answers[-1].status_code != 202

            await until(full, "the queue is full")
    assert (answers[-1].status_code, answers[-1].json()["type"]) == (503, "queue_full")
    assert int(answers[-1].headers["retry-after"]) > 0


async def test_a_request_is_held_for_a_worker_that_can_make_it_though_others_are_ready_and_not_for_ever() -> None:
    async with (
        paced_worker() as ready,
        paced_worker(Pace(model="house")) as coming,
        served_router(BOOT_HOLD_S="3") as router,
    ):
        await router.use("w-1", ready)
        async with router.http(timeout_s=60) as http, router.admin() as admin:
            wanted = {"prompt": "a", "size": "256x256", "model": "house"}
            assert (await http.post("/v1/images/generations", json=wanted)).status_code == 404, "nobody is expected"
            await admin.expect(INTERACTIVE, 600)
            given_up = await http.post("/v1/images/generations", json=wanted)
            assert given_up.status_code == 503
            assert "that could make it has become ready" in given_up.json()["error"]["message"]
            held = asyncio.create_task(http.post("/v1/images/generations", json=wanted))
            await _running(router, 1)
            await router.use("w-2", coming)
            assert (await held).status_code == 200
        assert [len((await worker.ledger()).started) for worker in (ready, coming)] == [0, 1]


async def test_a_request_is_held_while_its_pool_boots_and_not_for_ever() -> None:
    async with paced_worker(Pace(state=WorkerState.LOADING)) as worker, served_router(BOOT_HOLD_S="3") as router:
        async with router.admin() as admin:
            registration = WorkerRegistration(url=worker.url, token=worker.token, pool=INTERACTIVE)
            await admin.register("w-1", registration)
        async with router.http(timeout_s=60) as http:
            held = asyncio.create_task(http.post("/generate", json={"prompt": "a", "width": 256, "height": 256}))
            answer = await held
            assert answer.status_code == 503
            assert "has become ready" in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) > 0
            held = asyncio.create_task(http.post("/generate", json={"prompt": "a", "width": 256, "height": 256}))
            await worker.pace(Pace())
            assert (await held).status_code == 200
        assert len((await worker.ledger()).started) == 1, "the one that was given up was cancelled"
