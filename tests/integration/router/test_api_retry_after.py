"""`Retry-After` is true: who comes back then is taken on, and who comes much earlier is not."""

from __future__ import annotations

import asyncio

import httpx

from router.contract import JobRequest
from tests.emulators.pace import Pace
from tests.emulators.paced_process import paced_worker
from tests.integration.router.served import served_router

STEPS = 10
LATE_S = 2.0
"""Of what a busy machine takes longer than its pace was."""


def body() -> dict[str, object]:
    return JobRequest(prompt="a press", width=256, height=256, steps=STEPS).model_dump(mode="json", exclude_none=True)


async def job(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/v1/jobs", json=body())


async def open_request(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/v1/images/generations", json={"prompt": "a press", "size": "256x256"})


async def pace_is_known(http: httpx.AsyncClient) -> None:
    """One image was made, so that how long others will wait can be told."""
    made = await http.post("/generate", json={"prompt": "a press", "width": 256, "height": 256, "steps": STEPS})
    assert made.status_code == 200


async def test_who_comes_back_to_a_full_queue_when_it_was_told_to_finds_room() -> None:
    async with paced_worker(Pace(step_s=0.2)) as worker, served_router(QUEUE_BOUND="2") as router:
        await router.use("w-1", worker)
        async with router.http(timeout_s=60) as http:
            await pace_is_known(http)
            while (refused := await job(http)).status_code == 202:
                pass
            assert (refused.status_code, refused.json()["type"]) == (503, "queue_full")
            told_s = int(refused.headers["retry-after"])
            assert 2 <= told_s <= 4, "an image takes two seconds, and each makes room for one"
            assert (await job(http)).status_code == 503
            await asyncio.sleep(told_s + LATE_S)
            assert (await job(http)).status_code == 202


async def test_who_would_wait_too_long_on_the_line_is_told_when_to_come_back_and_may_leave_a_job_meanwhile() -> None:
    async with paced_worker(Pace(step_s=0.1)) as worker, served_router(WAIT_BOUND_S="3") as router:
        await router.use("w-1", worker)
        async with router.http(timeout_s=60) as http:
            await pace_is_known(http)
            for _ in range(8):  # a second each
                assert (await job(http)).status_code == 202
            await asyncio.sleep(1.1)  # until what is foretold is no older than this
            refused = await open_request(http)
            assert refused.status_code == 503
            said = refused.json()["error"]
            assert said["code"] == "wait_too_long"
            assert "/v1/jobs" in said["message"]
            told_s = int(refused.headers["retry-after"])
            assert 2 <= told_s <= 7, "some six or seven seconds would be waited, and three may be"
            await asyncio.sleep(told_s / 4)
            assert (await open_request(http)).status_code == 503
            await asyncio.sleep(3 * told_s / 4 + LATE_S)
            waiting = asyncio.create_task(open_request(http))
            assert (await job(http)).status_code == 202
            assert (await waiting).status_code == 200
