"""OpenAI's dialect through OpenAI's own client, against a served router and a paced worker."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import httpx
import httpx2
import openai
import pytest
import pytest_asyncio

from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.emulators.paced_worker import Fault, Pace
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
        ("output_format", "jpeg"),
        ("background", "transparent"),
        ("style", "vivid"),
        ("stream", True),
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
        await client.images.generate(prompt="a press", model="dall-e-3")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("some/other")


async def test_one_image_that_fails_cancels_the_others_and_is_named(router: ServedRouter, worker: PacedProcess) -> None:
    # A job fails for good when it has crashed on two workers.
    await worker.pace(Pace(step_s=0.05, fault=Fault.CRASH))
    try:
        async with paced_worker(Pace(step_s=0.05, fault=Fault.CRASH)) as second:
            await router.use("w-2", second)
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
                assert pool.failed + pool.cancelled == 4
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
