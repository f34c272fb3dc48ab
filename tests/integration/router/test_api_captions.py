"""Captions, samplers of one's own, and what is said of a picture that looks blocked, in each dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from router.contract import JobRequest, JobView
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.served import ServedRouter

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAPTION: dict[str, Any] = {
    "high_level_description": "a sign",
    "compositional_deconstruction": {
        "background": "a street",
        "elements": [{"type": "text", "text": "OPEN", "desc": "a sign"}],
    },
}
FAULTY = '{"compositional_deconstruction": {"background": "a street", "elements": [{"type": "text", "desc": "a"}]}}'
SMALL = {"width": 256, "height": 256, "steps": 2}


@pytest_asyncio.fixture(loop_scope="module")
async def http(router: ServedRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with router.http() as client:
        yield client


async def test_a_job_takes_a_caption_and_a_sampler_of_its_own(router: ServedRouter, http: httpx.AsyncClient) -> None:
    wanted = {**SMALL, "caption": CAPTION, "guidance": [5, 2.5], "mu": 0.25, "std": 1.0}
    async with router.client() as client:
        job = await client.wait((await client.submit(JobRequest.model_validate(wanted))).id)
    assert job.image
    shown = job.model_dump(mode="json", exclude_none=True)
    assert {name: shown[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs", {**SMALL, "prompt": FAULTY}),
        ("/v1/jobs", {**SMALL, "caption": {**CAPTION, "mood": "calm"}}),
        ("/v1/jobs", {**SMALL, "prompt": "a", "caption": CAPTION}),
        ("/v1/jobs", {**SMALL, "prompt": "a", "guidance": [7.0]}),
        ("/generate", {**SMALL, "prompt": FAULTY}),
        ("/v1/images/generations", {"prompt": FAULTY, "size": "256x256"}),
    ],
)
async def test_what_is_wrong_with_them_is_said_with_its_path(
    http: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code in {400, 422}
    words = ("elements.0: text", "caption.mood: is not a field", "prompt, caption: give exactly", "guidance: has 1")
    assert any(word in answer.text for word in words), answer.text


async def test_a_picture_that_looks_blocked_is_delivered_and_said_to_look_so(
    http: httpx.AsyncClient, worker: PacedProcess
) -> None:
    await worker.pace(Pace(suspicion="90% of the picture is one grey"))
    try:
        seed_style = await http.post("/generate", json={**SMALL, "prompt": "a fox"})
        assert (seed_style.status_code, seed_style.headers["x-is-image-safe"]) == (200, "false")
        openai = (await http.post("/v1/images/generations", json={"prompt": "a fox", "size": "256x256"})).json()
        assert (openai["data"][0]["is_image_safe"], bool(openai["data"][0]["b64_json"])) == (False, True)
        native = await _native(http)
        assert native.image
        assert (native.image.is_image_safe, native.image.safety_reason) == (False, "90% of the picture is one grey")
        assert (await http.get(f"/v1/jobs/{native.id}/image")).status_code == 200
    finally:
        await worker.pace(Pace())
    assert "x-is-image-safe" not in (await http.post("/generate", json={**SMALL, "prompt": "a fox"})).headers
    safe = await _native(http)
    assert safe.image
    assert (safe.image.is_image_safe, safe.image.safety_reason) == (True, "")


async def _native(http: httpx.AsyncClient) -> JobView:
    job = (await http.post("/v1/jobs", json={**SMALL, "prompt": "a fox"})).json()
    await http.get(f"/v1/jobs/{job['id']}/events")  # to its end
    return JobView.model_validate_json((await http.get(f"/v1/jobs/{job['id']}")).content)
