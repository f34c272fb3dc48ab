"""The paced worker is held to the contract: what a router can tell apart is the same as with the real one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import httpx
import pytest

from tests.emulators.pace import Pace
from tests.emulators.paced_process import paced_worker
from tests.integration.worker.serving import TOKEN, served
from tests.unit.worker.scripted import ScriptedEngine, request
from worker.contract import (
    EVENT,
    EVENTS_AND_IMAGE_MEDIA_TYPE,
    EVENTS_MEDIA_TYPE,
    MAX_BODY_BYTES,
    PROBLEM_MEDIA_TYPE,
    WITH_IMAGE,
    Accepted,
    Failed,
    FailureType,
    Finished,
    GenerationRequest,
    Preset,
    Problem,
    Started,
)

Worker = Callable[[float, float], AbstractAsyncContextManager[httpx.AsyncClient]]
"""Of seconds a step (0 or for ever), and seconds that an image is kept."""
FOR_EVER = 3600.0


@asynccontextmanager
async def real(step_s: float, keep_s: float) -> AsyncIterator[httpx.AsyncClient]:
    engine = ScriptedEngine(hurried=step_s == 0)
    async with served(engine, clock_keep_s=keep_s) as worker:
        try:
            yield worker.http
        finally:
            for _ in range(4):  # as many as any test here leaves behind
                engine.finish()


@asynccontextmanager
async def emulated(step_s: float, keep_s: float) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        paced_worker(Pace(step_s=step_s, keep_s=keep_s), TOKEN) as worker,
        httpx.AsyncClient(base_url=worker.url, headers=headers, timeout=30, trust_env=False) as http,
    ):
        yield http


both = pytest.mark.parametrize("worker", [real, emulated])


def said(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == PROBLEM_MEDIA_TYPE
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == answer.status_code
    return problem.status, problem.type


async def put(http: httpx.AsyncClient, name: str, body: GenerationRequest) -> httpx.Response:
    return await http.put(f"/generations/{name}", content=body.model_dump_json())


def events(answer: httpx.Response) -> list[Accepted | Started | Finished | Failed]:
    heard = [EVENT.validate_json(line) for line in answer.iter_lines() if line]
    return [event for event in heard if event.event != "step"]


@both
async def test_a_generation_that_is_cancelled_while_it_waits_frees_its_place_at_once(worker: Worker) -> None:
    async with worker(FOR_EVER, 600) as http, AsyncExitStack() as open_streams:
        for n in (1, 2):
            body = request(n).model_dump_json()
            stream = await open_streams.enter_async_context(http.stream("PUT", f"/generations/job.{n}", content=body))
            assert isinstance(EVENT.validate_json(await anext(stream.aiter_lines())), Accepted)
        third = await put(http, "job.3", request(3))
        assert (said(third), int(third.headers["retry-after"]) >= 1) == ((503, "busy"), True)
        assert (await http.delete("/generations/job.2")).status_code == 204
        accepted, failed = events(await put(http, "job.2", request(2)))
        assert isinstance(accepted, Accepted)
        assert isinstance(failed, Failed)
        assert (failed.type, failed.retryable) == (FailureType.CANCELLED, False)
        body = request(3).model_dump_json()
        async with http.stream("PUT", "/generations/job.3", content=body) as stream:
            assert stream.status_code == 200
        assert said(await http.get("/generations/job.1/image")) == (409, "not_finished")
        assert said(await http.get("/generations/job.2/image")) == (404, "not_found")


@both
@pytest.mark.parametrize(("preset", "steps"), [(None, 20), (Preset.TURBO_12, 12), (Preset.QUALITY_48, 48)])
async def test_a_preset_has_its_own_number_of_steps(worker: Worker, preset: Preset | None, steps: int) -> None:
    async with worker(0, 600) as http:
        body = GenerationRequest(prompt="a fox", width=256, height=256, preset=preset, seed=1)
        _, started, finished = events(await put(http, "job.1", body))
        assert isinstance(started, Started)
        assert started.steps == steps
        assert isinstance(finished, Finished)
        assert len((await http.get("/generations/job.1/image")).content) == finished.bytes


@both
async def test_an_image_comes_behind_the_last_event_for_whoever_asks_for_that(worker: Worker) -> None:
    async with worker(0, 600) as http:
        body = request(1).model_dump_json()
        answer = await http.put(f"/generations/job.1?{WITH_IMAGE}=true", content=body)
        again = await http.put(f"/generations/job.1?{WITH_IMAGE}=true", content=body)
        alone = await http.get("/generations/job.1/image")
        plain = await http.put("/generations/job.1", content=body)
    end = EVENT.validate_json(plain.content.splitlines()[-1])
    assert isinstance(end, Finished)
    assert plain.headers["content-type"] == EVENTS_MEDIA_TYPE
    assert hashlib.sha256(alone.content).hexdigest() == end.sha256
    for told in (answer, again):
        assert told.headers["content-type"] == EVENTS_AND_IMAGE_MEDIA_TYPE
        assert told.content == plain.content + alone.content


@both
async def test_an_image_is_kept_for_its_time_and_then_gone(worker: Worker) -> None:
    async with worker(0, 0) as http:
        assert said(await http.get("/generations/job.1/image")) == (404, "not_found")
        await put(http, "job.1", request())
        assert said(await http.get("/generations/job.1/image")) == (410, "gone")


@both
async def test_what_is_no_request_is_refused_alike(worker: Worker) -> None:
    async with worker(0, 600) as http:
        wrong = await http.put("/generations/job.1", json={"prompt": "a fox", "seed": 1, "width": 17})
        assert said(wrong) == (422, "invalid_request")
        assert [error.partition(":")[0] for error in wrong.json()["errors"]] == ["width"]
        for method, path in [("PUT", ""), ("DELETE", ""), ("GET", "/image")]:
            assert said(await http.request(method, f"/generations/job{path}")) == (422, "invalid_request")
            stranger = {"Authorization": "Bearer wrong"}
            answer = await http.request(method, f"/generations/job.1{path}", headers=stranger)
            assert said(answer) == (401, "unauthorized")
        large = await http.put("/generations/job.1", content=b" " * (MAX_BODY_BYTES + 1))
        assert said(large) == (413, "too_large")
        await put(http, "job.1", request(1))
        assert said(await put(http, "job.1", request(2))) == (409, "conflict")
