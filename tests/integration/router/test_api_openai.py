"""OpenAI's dialect through OpenAI's own client, against a served router and a paced worker."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from typing import Literal

import httpx
import httpx2
import openai
import pytest
import pytest_asyncio
from openai.types import ImageGenCompletedEvent

from tests.emulators.pace import Fault, Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.served import API_KEY, PUBLIC_URL, ServedRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = {"num_inference_steps": 2}


@pytest_asyncio.fixture(loop_scope="module")
async def client(router: ServedRouter) -> AsyncIterator[openai.AsyncOpenAI]:
    async with _client(router) as client:
        yield client


def _client(router: ServedRouter, key: str = API_KEY) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(transport=httpx2.AsyncHTTPTransport(uds=router.socket))
    return openai.AsyncOpenAI(base_url=f"{PUBLIC_URL}/v1", api_key=key, http_client=http, max_retries=0)


async def test_an_image_comes_as_base64_and_says_what_it_is(client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(
        model="ideogram-4", prompt="a press", size="512x256", quality="low", user="me", background="opaque"
    )
    assert answer.data is not None
    (image,) = answer.data
    assert base64.b64decode(image.b64_json or "")[16:24] == (512).to_bytes(4) + (256).to_bytes(4)
    assert image.url is None
    assert (answer.size, answer.quality, answer.output_format, answer.background) == ("512x256", "low", "png", "opaque")


async def test_an_image_comes_as_a_url_that_needs_no_key(router: ServedRouter, client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(prompt="a press", size="256x256", response_format="url", extra_body=SMALL)
    assert answer.data is not None
    url = answer.data[0].url or ""
    assert url.startswith(f"{PUBLIC_URL}/artifacts/job_")
    async with router.http("") as stranger:
        image = await stranger.get(url)
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")


async def test_n_images_have_seeds_that_follow_one_another(client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(prompt="a press", size="256x256", n=3, extra_body={**SMALL, "seed": 40})
    assert answer.data is not None
    assert [(image.model_extra or {})["seed"] for image in answer.data] == [40, 41, 42]
    assert len({image.b64_json for image in answer.data}) == 3


async def test_a_seed_at_the_end_of_its_range_goes_on_from_the_start(client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(prompt="a", size="256x256", n=2, extra_body={**SMALL, "seed": 2**31 - 1})
    assert answer.data is not None
    assert [(image.model_extra or {})["seed"] for image in answer.data] == [2**31 - 1, 0]


@pytest.mark.parametrize(
    ("quality", "echoed"), [("standard", "medium"), ("hd", "high"), ("auto", "medium"), ("high", "high")]
)
async def test_quality_chooses_a_preset_and_its_old_words_are_answered_in_new_ones(
    router: ServedRouter, quality: str, echoed: str
) -> None:
    async with router.http() as http:
        body = {"prompt": "a press", "size": "256x256", "quality": quality}
        answer = await http.post("/v1/images/generations", json=body)
    assert answer.json()["quality"] == echoed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("output_format", "gif"),
        ("background", "transparent"),
        ("style", "vivid"),
        ("stream", "yes"),
        ("partial_images", 4),
        ("partial_images", 2),
        ("output_compression", 50),
        ("n", 11),
        ("n", True),
        ("n", "2"),
        ("seed", "7"),
        ("size", "big"),
        ("size", "\u0662\u0665\u0666x256"),
        ("quality", "ultra"),
        ("negative_prompt", "blur"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: openai.AsyncOpenAI, field: str, value: object
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(prompt="a press", extra_body={field: value})
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"


async def test_two_ways_to_set_the_sampler_are_one_too_many(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="quality, num_inference_steps: each of them sets the sampler"):
        await client.images.generate(prompt="a press", quality="high", extra_body=SMALL)


async def test_sides_that_differ_too_much_are_refused_as_a_size(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(prompt="a press", size="2048x256")
    assert caught.value.param == "size"


async def test_a_wrong_key_is_an_authentication_error(router: ServedRouter) -> None:
    async with _client(router, "wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.images.generate(prompt="a press")
    assert caught.value.code == "invalid_api_key"


async def test_models_are_ours_and_the_workers(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["ideogram-4", "paced"]
    assert (await client.models.retrieve("paced")).id == "paced"


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is: ideogram-4, paced") as caught:
        await client.images.generate(prompt="a press", model="stable-diffusion")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("some/other")


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-3", "gpt-image-2-2026-04-21", "house-style"])
async def test_names_that_clients_have_written_down_mean_the_model_that_there_is(
    client: openai.AsyncOpenAI, model: str
) -> None:
    answer = await client.images.generate(prompt="a press", size="256x256", model=model, extra_body=SMALL)
    assert answer.data
    assert (await client.models.retrieve(model)).id == model


@pytest.mark.parametrize("form", ["jpeg", "webp"])
async def test_other_formats_are_asked_of_the_worker_with_their_compression(
    router: ServedRouter, client: openai.AsyncOpenAI, form: Literal["jpeg", "webp"]
) -> None:
    raw = await client.images.with_raw_response.generate(
        prompt="a press", size="256x256", output_format=form, output_compression=50, extra_body=SMALL
    )
    assert raw.parse().output_format == form
    async with router.http() as http:
        job = (await http.get(f"/v1/jobs/{raw.headers['x-job-id']}")).json()
    assert job["state"] == "succeeded"


async def test_usage_is_told_and_the_end_user_is_echoed(client: openai.AsyncOpenAI) -> None:
    answer = await client.images.generate(prompt="a press", size="256x256", user="me", extra_body=SMALL)
    assert answer.usage
    assert answer.usage.output_tokens == 256
    assert answer.usage.total_tokens == 256 + answer.usage.input_tokens
    assert answer.safety_identifier == "me"


async def test_streamed_images_come_as_events_that_the_client_knows(client: openai.AsyncOpenAI) -> None:
    stream = await client.images.generate(
        prompt="a press", size="256x256", n=2, stream=True, partial_images=2, extra_body={**SMALL, "seed": 5}
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert sorted((event.model_extra or {})["seed"] for event in events) == [5, 6]
    assert all(base64.b64decode(event.b64_json).startswith(b"\x89PNG") for event in events)
    assert isinstance(events[0], ImageGenCompletedEvent)
    assert (events[0].size, events[0].quality, events[0].usage.output_tokens) == ("256x256", "auto", 256)


async def test_a_stream_tells_progress_as_comments(router: ServedRouter) -> None:
    async with router.http() as http:
        body = {"prompt": "a press", "size": "256x256", "stream": True, **SMALL}
        answer = await http.post("/v1/images/generations", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert re.search(r"^: job_[0-9a-z]{26} step 1 of 2$", answer.text, re.MULTILINE)


async def test_what_goes_wrong_in_a_stream_is_raised_by_the_client(
    client: openai.AsyncOpenAI,
) -> None:
    stream = await client.images.generate(prompt="word " * 3000, size="256x256", stream=True)
    with pytest.raises(openai.APIError, match="3000 tokens"):
        _ = [event async for event in stream]


async def test_a_stream_that_nobody_reads_leaves_no_job_behind(router: ServedRouter, worker: PacedProcess) -> None:
    await worker.pace(Pace(step_s=0.2))
    try:
        async with router.admin() as admin:
            (before,) = await admin.pools()
            body = {"prompt": "a press", "n": 2, "stream": True}
            async with router.http() as http, http.stream("POST", "/v1/images/generations", json=body) as answer:
                assert answer.status_code == 200
                await anext(answer.aiter_bytes())

            async def cancelled() -> bool:
                (pool,) = await admin.pools()
                return pool.cancelled == before.cancelled + 2 and pool.running == 0

            await until(cancelled, "both images are cancelled")
    finally:
        await worker.pace(Pace())


async def test_an_edit_is_refused_by_name_and_not_tried_again(router: ServedRouter) -> None:
    async with _client(router) as client:
        patient = client.with_options(max_retries=3)
        with pytest.raises(openai.InternalServerError, match="from text alone") as caught:
            await patient.images.edit(image=b"x" * 2_000_000, prompt="a")
    assert (caught.value.status_code, caught.value.code) == (501, "not_served")
    assert router.log.count('"path": "/v1/images/edits"') <= 1


async def test_a_variation_is_refused_by_name(router: ServedRouter) -> None:
    async with router.http() as http:
        answer = await http.post("/v1/images/variations", files={"image": b"x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_served")


async def test_one_image_that_fails_cancels_the_others_and_is_named(router: ServedRouter, worker: PacedProcess) -> None:
    # A job fails for good when it has crashed on two workers.
    await worker.pace(Pace(step_s=0.05, fault=Fault.CRASH))
    try:
        async with paced_worker(Pace(step_s=0.05, fault=Fault.CRASH)) as second:
            await router.use("w-2", second)
            async with router.admin() as admin:
                (before,) = await admin.pools()
            async with router.http() as http:
                body = {"prompt": "a press", "n": 4, "size": "256x256", **SMALL}
                answer = await http.post("/v1/images/generations", json=body)
            assert answer.status_code == 502
            assert answer.headers["x-should-retry"] == "false"
            assert "engine_error" in answer.json()["error"]["message"]
            async with router.admin() as admin:

                async def nothing_left() -> bool:
                    (pool,) = await admin.pools()
                    return pool.queued == pool.running == 0

                await until(nothing_left, "the other images are cancelled")
                (pool,) = await admin.pools()
                assert pool.failed + pool.cancelled == before.failed + before.cancelled + 4
                await admin.remove("w-2")
    finally:
        await worker.pace(Pace())


async def test_a_caller_who_goes_away_leaves_no_job_behind(router: ServedRouter, worker: PacedProcess) -> None:
    await worker.pace(Pace(step_s=0.2))
    try:
        async with router.admin() as admin:
            (before,) = await admin.pools()
            async with router.http(timeout_s=0.5) as impatient:
                with pytest.raises(httpx.ReadTimeout):
                    await impatient.post("/v1/images/generations", json={"prompt": "a press", "n": 2})

            async def cancelled() -> bool:
                (pool,) = await admin.pools()
                return pool.cancelled == before.cancelled + 2 and pool.running == 0

            await until(cancelled, "both images are cancelled")
    finally:
        await worker.pace(Pace())
