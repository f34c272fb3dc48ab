"""Ideogram's dialect, as the hosted API's published calls send it: forms and JSON, by the `Api-Key` header."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
import standardwebhooks

from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.emulators.receiver import receiver
from tests.integration.router.served import API_KEY, ServedRouter, served_router, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

GENERATE, BEGIN = "/v1/ideogram-v4/generate", "/v1/ideogram-v4/async/generate"
HOOK = "https://example.com/hook"
CAPTION = {
    "compositional_deconstruction": {"elements": [{"desc": "a fox", "type": "obj"}], "background": "Schnee, 雪"},
    "high_level_description": "Ein Fuchs im Schnee",
}
SPELLED = (
    '{"high_level_description":"Ein Fuchs im Schnee","compositional_deconstruction":'
    '{"background":"Schnee, 雪","elements":[{"type":"obj","desc":"a fox"}]}}'
)


@pytest_asyncio.fixture(loop_scope="module")
async def http(router: ServedRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with router.http("") as client:
        client.headers["Api-Key"] = API_KEY
        yield client


def form(**fields: str) -> dict[str, Any]:
    """As `curl -F` sends it."""
    return {"files": {name: (None, value) for name, value in fields.items()}}


def refused(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    return str(answer.json()["error"])


async def test_the_published_call_gets_an_image_by_url(router: ServedRouter, http: httpx.AsyncClient) -> None:
    answer = await http.post(GENERATE, **form(text_prompt="a fox", resolution="1024x1024", rendering_speed="TURBO"))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {"created", "data", "response_type"}
    assert datetime.fromisoformat(body["created"]).tzinfo is not None
    (image,) = body["data"]
    assert image.keys() == {"url", "prompt", "resolution", "is_image_safe", "seed"}
    assert (image["prompt"], image["resolution"], image["is_image_safe"]) == ("a fox", "1024x1024", True)
    async with router.http("") as stranger:
        picture = await stranger.get(image["url"])
        assert picture.content[16:24] == (1024).to_bytes(4) + (1024).to_bytes(4)
        assert (await stranger.get(image["url"].replace("signature=", "signature=0"))).status_code == 403


async def test_json_does_the_same_and_speeds_are_presets(router: ServedRouter, http: httpx.AsyncClient) -> None:
    for speed, preset in (("TURBO", "V4_TURBO_12"), ("DEFAULT", "V4_DEFAULT_20"), ("QUALITY", "V4_QUALITY_48")):
        answer = await http.post(GENERATE, json={"text_prompt": "a", "resolution": "512x256", "rendering_speed": speed})
        assert answer.status_code == 200, answer.text
        async with router.http() as native:
            job = (await native.get(f"/v1/jobs/{answer.headers['x-job-id']}")).json()
        assert (job["preset"], job["width"], job["height"]) == (preset, 512, 256)


@pytest.mark.parametrize("sent", [form(json_prompt=json.dumps(CAPTION)), {"json": {"json_prompt": CAPTION}}])
async def test_a_structured_prompt_is_drawn_as_the_makers_guide_spells_it(
    http: httpx.AsyncClient, sent: dict[str, Any]
) -> None:
    answer = await http.post(GENERATE, **sent)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["prompt"] == SPELLED


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "text_prompt, json_prompt: give exactly one of them"),
        ({"text_prompt": "a", "json_prompt": json.dumps(CAPTION)}, "text_prompt, json_prompt: give exactly one"),
        ({"json_prompt": "{"}, "json_prompt: is not JSON"),
        ({"json_prompt": '{"compositional_deconstruction":{"background":"a","elements":[]}}'}, "high_level_descr"),
        ({"json_prompt": '{"high_level_description":"a"}'}, "json_prompt.compositional_deconstruction: is required"),
        ({"text_prompt": "a", "rendering_speed": "FLASH"}, "rendering_speed: FLASH is not served"),
        ({"text_prompt": "a", "rendering_speed": "FAST"}, "rendering_speed: "),
        ({"text_prompt": "a", "resolution": "1440x2880"}, "the nearest that can: 1024x2048"),
        ({"text_prompt": "a", "resolution": "big"}, "resolution: 'big' is not WIDTHxHEIGHT"),
        ({"text_prompt": "a", "enable_copyright_detection": "true"}, "nothing here detects copyrights"),
        ({"text_prompt": "a", "seed": "7"}, "seed: is not a field of this request"),
        ({"text_prompt": " "}, "text_prompt: is blank"),
        ({"text_prompt": "word " * 3000}, "3000 tokens"),
    ],
)
async def test_what_cannot_be_served_is_400_and_says_which_field(
    http: httpx.AsyncClient, fields: dict[str, str], why: str
) -> None:
    assert why in refused(await http.post(GENERATE, **(form(**fields) if fields else {"json": {}})))


async def test_bodies_that_are_no_request_are_refused_in_the_dialect(http: httpx.AsyncClient) -> None:
    assert "not JSON" in refused(await http.post(GENERATE, content=b"{", headers={"Content-Type": "application/json"}))
    assert "JSON object" in refused(await http.post(GENERATE, json=["a"]))
    assert "not a form" in refused(
        await http.post(GENERATE, content=b"x", headers={"Content-Type": "multipart/form-data; boundary=y"})
    )
    for content in (b'{"text_prompt": "\\ud800"}', b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b"NaN"):
        refused(await http.post(GENERATE, content=content, headers={"Content-Type": "application/json"}))
    strange = b'--y\r\nContent-Disposition: form-data; name="text_prompt"\r\n\r\n\xff\xfe\r\n--y--\r\n'
    odd = {"Content-Type": "multipart/form-data; boundary=y; charset=nonsense"}
    assert (await http.post(GENERATE, content=strange, headers=odd)).status_code == 200
    assert "is a file" in refused(await http.post(GENERATE, files={"image": ("a.png", b"png")}))
    twice = {"files": [("text_prompt", (None, "a")), ("text_prompt", (None, "b"))]}
    assert "more than once" in refused(await http.post(GENERATE, **twice))  # type: ignore[arg-type]
    assert "text/plain" in refused(await http.post(GENERATE, content=b"a", headers={"Content-Type": "text/plain"}), 415)
    assert "use POST" in refused(await http.get(GENERATE), 405)


async def test_a_wrong_or_missing_key_is_401(router: ServedRouter) -> None:
    async with router.http("") as stranger:
        assert "Api-Key: <api key>" in refused(await stranger.post(GENERATE, json={"text_prompt": "a"}), 401)
        answer = await stranger.post(GENERATE, json={"text_prompt": "a"}, headers={"Api-Key": "wrong"})
        assert "not known" in refused(answer, 401)


async def test_an_image_that_looks_refused_has_no_url(http: httpx.AsyncClient, worker: PacedProcess) -> None:
    await worker.pace(Pace(suspicion="one grey"))
    try:
        answer = await http.post(GENERATE, json={"text_prompt": "a", "resolution": "256x256"})
    finally:
        await worker.pace(Pace())
    (image,) = answer.json()["data"]
    assert (image["is_image_safe"], image["url"]) == (False, None)


async def test_the_same_request_again_under_one_key_is_the_same_image(http: httpx.AsyncClient) -> None:
    name = {"Idempotency-Key": "one-of-mine"}
    first = await http.post(GENERATE, json={"text_prompt": "a", "resolution": "256x256"}, headers=name)
    again = await http.post(GENERATE, **form(text_prompt="a", resolution="256x256"), headers=name)
    assert again.json()["data"][0]["seed"] == first.json()["data"][0]["seed"]
    assert again.headers["x-job-id"] == first.headers["x-job-id"]
    other = await http.post(GENERATE, json={"text_prompt": "b"}, headers=name)
    assert "Idempotency-Key" in refused(other, 422) or "key" in other.json()["error"]


async def test_v3_is_served_as_far_as_it_means_the_same(http: httpx.AsyncClient) -> None:
    answer = await http.post(
        "/v1/ideogram-v3/generate",
        **form(prompt="a fox", aspect_ratio="16x9", num_images="2", seed="7", magic_prompt="OFF"),
    )
    assert answer.status_code == 200, answer.text
    assert [(image["seed"], image["resolution"]) for image in answer.json()["data"]] == [
        (7, "1280x720"),
        (8, "1280x720"),
    ]
    for fields, why in (
        ({"style_codes": "AAFF"}, "style_codes: is not a field"),
        ({"magic_prompt": "ON"}, "magic_prompt: "),
        ({"negative_prompt": "blur"}, "negative_prompt: is not a field"),
        ({"style_type": "REALISTIC"}, "style_type: "),
        ({"num_images": "9"}, "num_images: 9 is too large"),
        ({"aspect_ratio": "16:9"}, "aspect_ratio: '16:9' is none of"),
        ({"aspect_ratio": "1x1", "resolution": "1024x1024"}, "give one of them"),
    ):
        assert why in refused(await http.post("/v1/ideogram-v3/generate", **form(prompt="a", **fields)))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/v1/ideogram-v4/magic-prompt", "not built yet"),
        ("/v1/ideogram-v4/remix", "draw from text alone"),
        ("/v1/ideogram-v3/replace-background", "draw from text alone"),
        ("/upscale", "at most 2048 pixels"),
        ("/describe", "not built yet"),
    ],
)
async def test_what_is_not_there_says_why_also_to_an_upload(http: httpx.AsyncClient, path: str, why: str) -> None:
    answer = await http.post(path, files={"image": ("a.png", b"x" * 3_000_000)})
    assert why in refused(answer, 501)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/hook", "must be https"),
        ("https://127.0.0.1/hook", "127.0.0.1 is not a public address"),
        ("https://[::ffff:10.0.0.1]/hook", "is not a public address"),
        ("https://169.254.169.254/latest", "is not a public address"),
        ("https://localhost/hook", "localhost is not a public address"),
        ("https://metadata.google.internal/", "is not a public address"),
        ("https://me:secret@example.com/", "no name and no password"),
        ("https://example.com/#ideogram", "no #fragment"),
        ("nonsense", "must be a URL"),
        ("https://[", "must be a URL"),
        ("https://exa mple.com/", "must be a URL"),
    ],
)
async def test_a_webhook_goes_to_public_addresses_by_https_alone(http: httpx.AsyncClient, url: str, why: str) -> None:
    answer = await http.post(BEGIN, params={"webhook_url": url}, json={"text_prompt": "a"})
    assert "webhook_url: " in refused(answer)
    assert why in refused(answer)


async def test_a_generation_is_pending_then_completed_and_only_its_own_keys(http: httpx.AsyncClient) -> None:
    assert "webhook_url: is required" in refused(await http.post(BEGIN, json={"text_prompt": "a"}))
    answer = await http.post(
        BEGIN, params={"webhook_url": HOOK}, **form(text_prompt="a", resolution="256x256", rendering_speed="QUALITY")
    )
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"generation_id"}
    path = f"/v1/generations/{answer.json()['generation_id']}"
    first = (await http.get(path)).json()
    assert first["status"] == "completed" or first.keys() == {"generation_id", "status", "created"}

    async def completed() -> bool:
        return bool((await http.get(path)).json()["status"] == "completed")

    await until(completed, "the generation is completed")
    found = (await http.get(path)).json()
    assert found.keys() == {"generation_id", "status", "created", "response_type", "data"}
    assert found["data"][0]["resolution"] == "256x256"
    assert "no generation" in refused(await http.get("/v1/generations/other"), 404)


async def test_the_webhook_tells_it_in_the_dialect_and_is_signed() -> None:
    async with (
        receiver() as hook,
        paced_worker(Pace(suspicion="one grey")) as worker,
        served_router(WEBHOOK_ALLOW="127.0.0.1") as router,
        router.http() as http,
    ):
        await router.use("w-1", worker)
        secret = (await http.get("/v1/webhooks/secrets")).json()["secrets"][0]
        sent = {"text_prompt": "a", "resolution": "256x256"}
        answer = await http.post(BEGIN, params={"webhook_url": hook.url()}, json=sent)
        assert answer.status_code == 200, answer.text

        async def told() -> bool:
            return bool(hook.got)

        await until(told, "the webhook is told")
        native = (await http.get(f"/v1/jobs/{answer.json()['generation_id']}")).json()
        assert native["webhook"] == hook.url(), "as it was given: the mark of a dialect is ours"
    (got,) = hook.got
    assert got.path == "/hook"
    standardwebhooks.Webhook(secret).verify(got.body, got.headers)
    body = json.loads(got.body)
    assert (body["generation_id"], body["status"]) == (answer.json()["generation_id"], "completed")
    assert (body["data"][0]["is_image_safe"], body["data"][0]["url"]) == (False, None)


async def test_the_document_describes_both_kinds_of_body(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    body = document["paths"][GENERATE]["post"]["requestBody"]["content"]
    assert body.keys() == {"multipart/form-data", "application/json"}
    assert "501" in document["paths"]["/v1/ideogram-v4/remix"]["post"]["responses"]
    assert "$ref" not in json.dumps(body)
    caption = body["application/json"]["schema"]["properties"]["json_prompt"]
    assert "compositional_deconstruction" in json.dumps(caption)
