"""Native jobs: listed with filters and page by page, tried again, and followed from where one stopped."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import httpx
import pytest
import pytest_asyncio

from router.contract import KeyRequest
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.served import ServedRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = {"prompt": "a press", "width": 256, "height": 256, "steps": 2}


@pytest_asyncio.fixture(loop_scope="module")
async def http(router: ServedRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with router.http() as client:
        yield client


async def made(http: httpx.AsyncClient, **fields: object) -> dict[str, str]:
    answer = await http.post("/v1/jobs", json={**SMALL, **fields})
    assert answer.status_code == 202, answer.text
    job: dict[str, str] = answer.json()
    return job


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, str]:
    async def over() -> bool:
        state = (await http.get(f"/v1/jobs/{job_id}")).json()["state"]
        return state not in ("queued", "running")

    await until(over, f"{job_id} has ended")
    job: dict[str, str] = (await http.get(f"/v1/jobs/{job_id}")).json()
    return job


async def test_a_keys_own_jobs_are_listed_newest_first_and_page_by_page(
    router: ServedRouter, http: httpx.AsyncClient
) -> None:
    async with router.admin() as admin:
        key = (await admin.create_key(KeyRequest(name="lister"))).key
    async with router.http(key) as mine:
        assert (await mine.get("/v1/jobs")).json() == {"data": [], "has_more": False}
        names = [(await made(mine))["id"] for _ in range(5)]
        await made(http)  # another's
        seen, after = list[str](), ""
        while True:
            params = {"limit": "2", **({"after": after} if after else {})}
            page = (await mine.get("/v1/jobs", params=params)).json()
            seen += [job["id"] for job in page["data"]]
            after = seen[-1]
            if not page["has_more"]:
                break
    assert seen == names[::-1]


async def test_jobs_are_filtered_by_state_pool_and_time(http: httpx.AsyncClient) -> None:
    first, second = await made(http), await made(http)
    await ended(http, second["id"])

    async def listed(**params: str) -> list[str]:
        return [job["id"] for job in (await http.get("/v1/jobs", params={"limit": "500", **params})).json()["data"]]

    at = datetime.fromisoformat(second["created_at"])
    assert second["id"] in await listed(state="succeeded", pool="interactive")
    assert await listed(pool="nowhere") == await listed(state="expired") == await listed(batch="batch_none") == []
    assert (await listed(created_after=at.isoformat()))[-1:] in ([second["id"]], [first["id"]])
    assert second["id"] not in await listed(created_before=at.isoformat())
    assert await listed(created_after=(at + timedelta(minutes=1)).isoformat()) == []


@pytest.mark.parametrize(
    "params", [{"limit": "0"}, {"limit": "501"}, {"state": "asleep"}, {"created_after": "2026-11-24T10:00:00"}]
)
async def test_a_filter_that_makes_no_sense_is_refused_by_name(http: httpx.AsyncClient, params: dict[str, str]) -> None:
    answer = await http.get("/v1/jobs", params=params)
    assert answer.status_code == 422
    assert answer.json()["errors"][0].startswith(next(iter(params)))


async def test_a_job_that_has_no_image_is_tried_again_as_a_new_one_that_names_it(
    http: httpx.AsyncClient, worker: PacedProcess
) -> None:
    await worker.pace(Pace(step_s=0.3))
    try:
        job = await made(http, steps=50, seed=9, priority=3)
        refused = await http.post(f"/v1/jobs/{job['id']}/retry")
        assert (refused.status_code, refused.json()["type"]) == (409, "not_retryable")
        await http.delete(f"/v1/jobs/{job['id']}")
        assert (await ended(http, job["id"]))["state"] == "cancelled"
    finally:
        await worker.pace(Pace())
    headers = {"Idempotency-Key": f"again-{job['id']}"}
    answers = [await http.post(f"/v1/jobs/{job['id']}/retry", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    again = answers[0].json()
    assert answers[1].json()["id"] == again["id"] != job["id"]
    assert answers[0].headers["location"] == f"/v1/jobs/{again['id']}"
    assert (again["retry_of"], again["seed"], again["priority"]) == (job["id"], 9, 3)
    assert (await ended(http, again["id"]))["state"] == "succeeded"
    assert (await http.post(f"/v1/jobs/{again['id']}/retry")).status_code == 409
    assert (await http.post("/v1/jobs/job_none/retry")).status_code == 404


async def test_a_stream_goes_on_after_the_last_event_that_was_seen(http: httpx.AsyncClient) -> None:
    job = await made(http)
    await ended(http, job["id"])
    path = f"/v1/jobs/{job['id']}/events"
    whole = await http.get(path)
    (last,) = re.findall(r"^id: (.+)$", whole.text, re.MULTILINE)
    assert (await http.get(path, headers={"Last-Event-ID": last})).status_code == 204
    for earlier in ("1-0-1", "0-1-0", "nonsense"):
        assert (await http.get(path, headers={"Last-Event-ID": earlier})).text == whole.text


async def test_ids_of_events_only_ever_grow(http: httpx.AsyncClient, worker: PacedProcess) -> None:
    await worker.pace(Pace(step_s=0.1))
    try:
        job = await made(http, steps=5)
        text = (await http.get(f"/v1/jobs/{job['id']}/events")).text
    finally:
        await worker.pace(Pace())
    ids = [tuple(map(int, found.split("-"))) for found in re.findall(r"^id: (.+)$", text, re.MULTILINE)]
    assert len(ids) > 2
    assert ids == sorted(set(ids))
