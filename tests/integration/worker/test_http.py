"""The wire contract, over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from PIL import Image

from tests.integration.worker.serving import TOKEN, served
from tests.unit.worker.scripted import PATIENCE_S, ScriptedEngine, request, until
from worker.contract import (
    EVENTS_MEDIA_TYPE,
    MAX_BODY_BYTES,
    PROBLEM_MEDIA_TYPE,
    Accepted,
    Failed,
    FailureType,
    Finished,
    ImageFormat,
    Problem,
    ProblemType,
    WorkerState,
    WorkerStatus,
)
from worker.engine import LoadError

BODY = request().model_dump_json()


def problem(response: httpx.Response, status: int, kind: ProblemType) -> Problem:
    assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM_MEDIA_TYPE), response.text
    said = Problem.model_validate_json(response.content)
    assert (said.status, said.type) == (status, kind)
    assert said.detail
    return said


async def test_an_image_is_made_told_of_and_fetched() -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        events = await worker.put("job.1", request())
        end = events[-1]
        assert isinstance(end, Finished)
        image = await worker.http.get("/generations/job.1/image")
        assert image.headers["content-type"] == "image/png"
        assert (len(image.content), hashlib.sha256(image.content).hexdigest()) == (end.bytes, end.sha256)


@pytest.mark.parametrize("form", list(ImageFormat))
async def test_an_image_comes_in_the_format_that_was_asked_for(form: ImageFormat) -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        wanted = request().model_copy(update={"format": form})
        end = (await worker.put("job.1", wanted))[-1]
        assert isinstance(end, Finished)
        answer = await worker.http.get("/generations/job.1/image")
        assert end.media_type == answer.headers["content-type"] == form.media_type
        with Image.open(io.BytesIO(answer.content)) as image:
            assert (image.format, image.size) == (form.upper(), (wanted.width, wanted.height))


async def test_behind_a_load_balancer_the_token_comes_in_a_header_of_its_own() -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        balancers = {"Authorization": "Bearer rpa_of-the-balancer"}
        right, wrong = balancers | {"X-Letterpress-Token": TOKEN}, balancers | {"X-Letterpress-Token": "wrong"}
        assert (await worker.http.delete("/generations/job.1", headers=right)).status_code == 204
        assert (await worker.http.delete("/generations/job.1", headers=wrong)).status_code == 401
        assert (await worker.http.delete("/generations/job.1", headers=balancers)).status_code == 401


async def test_a_load_balancer_is_told_when_to_send_requests_and_needs_no_token_to_ask() -> None:
    async with served(ScriptedEngine(hurried=True), load=False) as worker:
        anybody = {"Authorization": ""}
        assert (await worker.http.get("/ping", headers=anybody)).status_code == 204
        await worker.runner.load()
        assert (await worker.http.get("/ping", headers=anybody)).status_code == 200
        await worker.runner.drain("told to stop")
        assert (await worker.http.get("/ping", headers=anybody)).status_code == 503


async def test_the_stream_says_its_type_and_beats_while_nothing_happens() -> None:
    engine = ScriptedEngine()
    async with (
        served(engine, heartbeat_s=0.02) as worker,
        worker.http.stream("PUT", "/generations/job.1", content=BODY) as response,
    ):
        assert response.headers["content-type"] == EVENTS_MEDIA_TYPE
        lines = response.aiter_lines()
        assert [json.loads(await anext(lines))["event"] for _ in range(2)] == ["accepted", "started"]
        assert [await anext(lines) for _ in range(3)] == ["", "", ""]
        engine.finish()
        rest = [line async for line in lines if line]
        assert [json.loads(line)["event"] for line in rest] == ["finished"]


async def test_concurrent_puts_of_one_id_share_one_image() -> None:
    engine = ScriptedEngine()
    async with served(engine) as worker:
        puts = [asyncio.create_task(worker.put("job.1", request())) for _ in range(200)]
        await until(lambda: worker.runner._running and worker.runner._running.followers == 200, "everyone follows")
        engine.finish()
        stories = await asyncio.gather(*puts)
        assert all(events == stories[0] for events in stories)
        assert len(engine.asked) == 1


async def test_a_reader_that_hangs_up_ends_nothing() -> None:
    engine = ScriptedEngine()
    async with served(engine, heartbeat_s=0.02) as worker:
        async with worker.http.stream("PUT", "/generations/job.1", content=BODY) as response:
            await anext(response.aiter_lines())
        await until(lambda: worker.runner._running and not worker.runner._running.followers, "the reader was missed")
        engine.finish()
        assert isinstance((await worker.put("job.1", request()))[-1], Finished)


async def test_delete_cancels_between_steps_and_gone_is_success() -> None:
    engine = ScriptedEngine()
    async with served(engine) as worker:
        following = asyncio.create_task(worker.put("job.1", request()))
        await until(lambda: engine.active, "the engine was asked")
        assert (await worker.http.delete("/generations/job.1")).status_code == 204
        engine.step()
        end = (await following)[-1]
        assert isinstance(end, Failed)
        assert end.type is FailureType.CANCELLED
        assert (await worker.http.delete("/generations/job.1")).status_code == 204
        assert (await worker.http.delete("/generations/never.1")).status_code == 204


async def test_a_third_generation_is_told_busy_and_when_to_come_back() -> None:
    engine = ScriptedEngine()
    async with served(engine) as worker:
        puts = [asyncio.create_task(worker.put(f"job.{n}", request(n))) for n in (1, 2)]
        await until(lambda: worker.runner.status().accepted, "both places are taken")
        response = await worker.http.put("/generations/job.3", content=request(3).model_dump_json())
        problem(response, 503, ProblemType.BUSY)
        assert int(response.headers["retry-after"]) >= 1
        engine.finish()
        engine.finish()
        assert all(isinstance(events[-1], Finished) for events in await asyncio.gather(*puts))


async def test_another_body_under_the_same_id_is_a_conflict() -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        await worker.put("job.1", request(1))
        other = await worker.http.put("/generations/job.1", content=request(2).model_dump_json())
        problem(other, 409, ProblemType.CONFLICT)


async def test_an_image_that_is_not_there_says_which_kind_of_not_there() -> None:
    engine, now = ScriptedEngine(), asyncio.get_running_loop().time
    async with served(engine, clock_keep_s=0.05) as worker:
        problem(await worker.http.get("/generations/job.1/image"), 404, ProblemType.NOT_FOUND)
        following = asyncio.create_task(worker.put("job.1", request()))
        await until(lambda: engine.active, "the engine was asked")
        problem(await worker.http.get("/generations/job.1/image"), 409, ProblemType.NOT_FINISHED)
        engine.finish()
        await following
        await until(lambda: worker.runner.kept.get("job.1", now()) is None, "its time is over")
        problem(await worker.http.get("/generations/job.1/image"), 410, ProblemType.GONE)


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({"width": 1000}, ["width: Input should be a multiple of 16"]),
        ({"width": "256"}, ["width: Input should be a valid integer"]),
        ({"steps": True}, ["steps: Input should be a valid integer"]),
        ({"steps": 0}, ["steps: Input should be greater than or equal to 1"]),
        ({"prompt": ""}, ["prompt: String should have at least 1 character"]),
        ({"prompt": " \n"}, ["prompt: is blank; say what the image should show"]),
        ({"sampler": "euler"}, ["sampler: Extra inputs are not permitted"]),
        ({"steps": 20, "preset": "V4_TURBO_12"}, ["steps, preset: give one of them, not both"]),
        ({"width": 2048, "height": 256}, ["width, height: 2048x256 is longer than 6:1; the weights were not made for"]),
        (
            {"seed": None, "width": 17},
            ["width: Input should be a multiple of 16", "seed: Input should be a valid integer"],
        ),
    ],
)
async def test_a_wrong_request_names_each_field(body: dict[str, object], errors: list[str]) -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        sent = {"prompt": "a fox", "seed": 1, **body}
        said = problem(await worker.http.put("/generations/job.1", json=sent), 422, ProblemType.INVALID_REQUEST)
        assert len(said.errors) == len(errors)
        assert all(got.startswith(want) for got, want in zip(said.errors, errors, strict=True)), said.errors
        assert not worker.engine.asked


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"prompt": "\\ud800", "seed": 1}'])
async def test_a_body_that_is_no_request_is_a_problem_and_never_a_fault(content: bytes) -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        response = await worker.http.put("/generations/job.1", content=content)
        assert problem(response, 422, ProblemType.INVALID_REQUEST).errors


@pytest.mark.parametrize("generation_id", ["job", "job.x", "a b.1", "job.1234567890", "x" * 65 + ".1"])
async def test_an_id_of_another_form_is_refused(generation_id: str) -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        response = await worker.http.put(f"/generations/{generation_id}", content=BODY)
        assert problem(response, 422, ProblemType.INVALID_REQUEST).errors[0].startswith("id: ")


async def test_a_body_over_the_bound_is_refused_with_or_without_its_length() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 2**20

    async with served(ScriptedEngine(hurried=True)) as worker:
        for content in (b" " * (MAX_BODY_BYTES + 1), chunks()):
            response = await worker.http.put("/generations/job.1", content=content)
            problem(response, 413, ProblemType.TOO_LARGE)
        assert not worker.engine.asked


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/generations/job.1"),
        ("GET", "/generations/job.1/image"),
        ("DELETE", "/generations/job.1"),
        ("GET", "/metrics"),
    ],
)
async def test_without_the_token_every_guarded_route_is_closed(method: str, path: str, given: str | None) -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        worker.http.headers.pop("authorization")
        headers = [] if given is None else [(b"authorization", given.encode())]
        response = await worker.http.request(method, path, headers=headers, content=BODY)
        problem(response, 401, ProblemType.UNAUTHORIZED)
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert not worker.engine.asked


async def test_the_probes_need_no_token() -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        worker.http.headers.pop("authorization")
        assert (await worker.http.get("/livez")).status_code == 200
        assert (await worker.http.get("/readyz")).status_code == 200


async def test_unknown_paths_and_methods_are_problems_too() -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        problem(await worker.http.get("/nowhere"), 404, ProblemType.NOT_FOUND)
        response = await worker.http.post("/generations/job.1", content=BODY)
        problem(response, 405, ProblemType.METHOD_NOT_ALLOWED)
        assert "PUT" in response.headers["allow"]


async def test_readiness_follows_the_worker_from_loading_to_draining() -> None:
    engine = ScriptedEngine()
    async with served(engine, load=False) as worker:

        async def ready() -> tuple[int, WorkerState, str]:
            response = await worker.http.get("/readyz")
            status = WorkerStatus.model_validate_json(response.content)
            return response.status_code, status.state, status.reason

        assert (await worker.http.get("/livez")).status_code == 200
        assert await ready() == (503, WorkerState.LOADING, "starting")
        problem(await worker.http.put("/generations/job.1", content=BODY), 503, ProblemType.NOT_READY)
        await worker.runner.load()
        assert await ready() == (200, WorkerState.READY, "")
        following = asyncio.create_task(worker.put("job.1", request()))
        await until(lambda: engine.active, "the engine was asked")
        drained = asyncio.create_task(worker.runner.drain("told to stop"))
        await until(lambda: worker.runner.health.state is WorkerState.DRAINING, "the drain began")
        assert await ready() == (503, WorkerState.DRAINING, "told to stop")
        engine.finish()
        await asyncio.wait_for(drained, PATIENCE_S)
        assert isinstance((await following)[-1], Finished)


async def test_a_broken_worker_says_why() -> None:
    async with served(ScriptedEngine(loading=LoadError("no such folder")), load=False) as worker:
        await worker.runner.load()
        status = WorkerStatus.model_validate_json((await worker.http.get("/readyz")).content)
        assert (status.state, status.reason) == (WorkerState.BROKEN, "no such folder")


async def test_metrics_count_generations_by_how_they_ended() -> None:
    async with served(ScriptedEngine(hurried=True)) as worker:
        events = await worker.put("job.1", request(steps=3))
        assert isinstance(events[0], Accepted)
        text = (await worker.http.get("/metrics")).text
        for line in (
            'letterpress_worker_generations_total{outcome="finished"} 1.0',
            "letterpress_worker_step_seconds_count 2.0",
            'letterpress_worker_part_seconds_count{part="total"} 1.0',
            'letterpress_worker_state{state="ready"} 1.0',
            'letterpress_worker_state{state="broken"} 0.0',
            'letterpress_worker_places_taken{place="running"} 0.0',
        ):
            assert line in text.splitlines(), line
