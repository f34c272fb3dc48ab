"""Native jobs: they outlive the connection, tell their progress, and belong to their key."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from router.api.auth import digest
from router.api.links import Links
from router.client import JobEndedError, RouterNotFoundError, RouterRefusedError, RouterUnauthorizedError
from router.contract import JobRequest, JobState, JobView
from router.store.sql import SqlStore
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.served import PUBLIC_URL, ServedRouter, served_router, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = JobRequest(prompt="a press", width=256, height=256, steps=4)


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    event: str
    job: JobView


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[PacedProcess]:
    async with paced_worker(Pace(step_s=0.02)) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def http(router: ServedRouter) -> AsyncIterator[httpx.AsyncClient]:
    async with router.http() as client:
        yield client


async def _submit(http: httpx.AsyncClient, request: JobRequest = SMALL) -> str:
    answer = await http.post("/v1/jobs", json=request.model_dump(mode="json", exclude_none=True))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def _events(http: httpx.AsyncClient, job_id: str, listening: Callable[[], None] | None = None) -> list[Sent]:
    """All of them; `listening` is called when the first is here."""
    async with http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        text = ""
        async for piece in stream.aiter_text():
            if listening is not None and not text:
                listening()
            text += piece
    sent = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            sent.append(Sent(fields["event"], JobView.model_validate_json(fields["data"])))
    return sent


async def test_a_job_is_accepted_with_its_place_and_its_seed(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", json={"prompt": "a press", "width": 256, "height": 256, "seed": 5, "steps": 2})
    job = JobView.model_validate_json(answer.content)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    assert (job.state, job.attempt, job.seed, job.pool) == (JobState.QUEUED, 0, 5, "interactive")


async def test_the_events_tell_the_whole_way_of_a_job(http: httpx.AsyncClient, worker: PacedProcess) -> None:
    worker.freeze()  # the job may be over before a busy computer has come to listen
    try:
        job_id = await _submit(http)
        sent = await _events(http, job_id, worker.thaw)
    finally:
        worker.thaw()
    names = [one.event for one in sent]
    assert names[-1] == "succeeded"
    assert "progress" in names
    steps = [one.job.progress.step for one in sent if one.event == "progress" and one.job.progress]
    assert steps == sorted(steps)
    assert all(one.job.id == job_id for one in sent)


async def test_who_watches_an_ended_job_gets_its_end_at_once(http: httpx.AsyncClient) -> None:
    job_id = await _submit(http)
    await _events(http, job_id)
    assert [one.event for one in await _events(http, job_id)] == ["succeeded"]


async def test_a_finished_job_has_its_image_under_two_addresses(router: ServedRouter, http: httpx.AsyncClient) -> None:
    job_id = await _submit(http)
    job = (await _events(http, job_id))[-1].job
    assert job.image is not None
    by_key = await http.get(f"/v1/jobs/{job_id}/image")
    async with router.http("") as stranger:
        by_link = await stranger.get(job.image.url)
        assert (await stranger.get(f"/v1/jobs/{job_id}/image")).status_code == 401
    assert by_key.content == by_link.content
    assert hashlib.sha256(by_key.content).hexdigest() == job.image.sha256
    assert len(by_key.content) == job.image.bytes


async def test_an_image_is_named_by_its_digest_and_not_sent_twice(http: httpx.AsyncClient) -> None:
    job_id = await _submit(http)
    job = (await _events(http, job_id))[-1].job
    assert job.image is not None
    url = job.image.url.removeprefix(PUBLIC_URL)
    first = await http.get(url)
    assert first.headers["etag"] == f'"{job.image.sha256}"'
    assert "immutable" in first.headers["cache-control"]
    again = await http.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_an_image_can_be_asked_after_without_being_sent(http: httpx.AsyncClient) -> None:
    job_id = await _submit(http)
    job = (await _events(http, job_id))[-1].job
    assert job.image is not None
    for path in (f"/v1/jobs/{job_id}/image", job.image.url.removeprefix(PUBLIC_URL)):
        answer = await http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert (answer.headers["content-type"], answer.headers["content-length"]) == ("image/png", str(job.image.bytes))


@pytest.mark.parametrize("asked", ["bytes=0-9", "bytes=999999999-", "bytes=9-1", "lines=1-2", "nonsense"])
async def test_an_image_comes_whole_whatever_range_is_asked_for(http: httpx.AsyncClient, asked: str) -> None:
    job_id = await _submit(http)
    job = (await _events(http, job_id))[-1].job
    assert job.image is not None
    answer = await http.get(f"/v1/jobs/{job_id}/image", headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, job.image.bytes)
    assert answer.headers["accept-ranges"] == "none"


async def test_a_forged_link_is_forbidden(http: httpx.AsyncClient) -> None:
    job_id, other = await _submit(http), await _submit(http)
    job = (await _events(http, job_id))[-1].job
    await _events(http, other)
    assert job.image is not None
    link = urlsplit(job.image.url)
    for path, query in [
        (link.path.replace(job_id, other), link.query),
        (link.path, link.query[:-1] + ("0" if link.query[-1] != "0" else "1")),
        (link.path, link.query.replace("expires=1", "expires=2")),
    ]:
        answer = await http.get(f"{path}?{query}")
        assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")


async def test_a_link_ends() -> None:
    # Signed by the same key for a moment that has passed: what a link of yesterday is today.
    links = Links(PUBLIC_URL, b"signing-key-of-a-test", 60)
    async with served_router() as served, served.http("") as stranger:
        answer = await stranger.get(links.url("job_0", 1_000_000_000))
    assert answer.status_code == 403
    assert "expired" in answer.json()["detail"]


async def test_there_is_no_image_before_the_end(worker: PacedProcess, http: httpx.AsyncClient) -> None:
    await worker.pace(Pace(step_s=0.3))
    try:
        job_id = await _submit(http)
        answer = await http.get(f"/v1/jobs/{job_id}/image")
        assert (answer.status_code, answer.json()["type"]) == (409, "not_finished")
        await http.delete(f"/v1/jobs/{job_id}")
    finally:
        await worker.pace(Pace(step_s=0.02))


async def test_a_running_job_is_cancelled_between_two_steps(worker: PacedProcess, http: httpx.AsyncClient) -> None:
    await worker.pace(Pace(step_s=0.2))
    try:
        job_id = await _submit(http, SMALL.model_copy(update={"steps": 100}))

        async def running() -> bool:
            job = JobView.model_validate_json((await http.get(f"/v1/jobs/{job_id}")).content)
            return job.state is JobState.RUNNING and job.progress is not None

        await until(running, "the job runs and says its progress")
        assert (await http.delete(f"/v1/jobs/{job_id}")).status_code == 200
        assert (await _events(http, job_id))[-1].event == "cancelled"
        answer = await http.get(f"/v1/jobs/{job_id}/image")
        assert (answer.status_code, answer.json()["type"]) == (409, "cancelled")
    finally:
        await worker.pace(Pace(step_s=0.02))


async def test_cancelling_a_job_that_has_ended_changes_nothing(http: httpx.AsyncClient) -> None:
    job_id = await _submit(http)
    await _events(http, job_id)
    assert (await http.delete(f"/v1/jobs/{job_id}")).json()["state"] == "succeeded"


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/image"), ("GET", "/events")])
async def test_a_job_that_is_not_there_is_404(http: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, f"/v1/jobs/job_{'0' * 26}{path}")
    assert (answer.status_code, answer.json()["type"]) == (404, "not_found")


async def test_a_watcher_who_leaves_early_does_not_disturb_the_job(http: httpx.AsyncClient) -> None:
    job_id = await _submit(http, SMALL.model_copy(update={"steps": 30}))
    async with http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        async for _ in stream.aiter_text():
            break
    assert (await _events(http, job_id))[-1].event == "succeeded"


async def test_the_client_makes_an_image_from_end_to_end(router: ServedRouter) -> None:
    async with router.client() as client:
        image = await client.generate(SMALL)
    assert image[:8] == b"\x89PNG\r\n\x1a\n"


async def test_the_client_tells_errors_apart(router: ServedRouter) -> None:
    async with router.client() as client, router.client("wrong") as stranger:
        with pytest.raises(RouterNotFoundError, match="there is no job"):
            await client.job("job_x")
        with pytest.raises(RouterUnauthorizedError, match="not known here"):
            await stranger.job("job_x")
        with pytest.raises(RouterRefusedError, match="is longer than 6:1"):
            await client.submit(JobRequest(prompt="a", width=2048, height=256))
        with pytest.raises(JobEndedError, match=r"invalid_request: .*3000 tokens"):
            await client.generate(JobRequest(prompt="word " * 3000))


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/image"), ("GET", "/events")])
async def test_another_keys_job_is_not_there(router: ServedRouter, method: str, path: str) -> None:
    store = await SqlStore.open(f"sqlite+aiosqlite:///{router.folder}/data/router.db")
    try:
        await store.put_api_key("other", digest("lp_the-key-of-another"))
    finally:
        await store.close()
    async with router.http() as owner, router.http("lp_the-key-of-another") as other:
        job_id = await _submit(owner)
        assert (await other.request(method, f"/v1/jobs/{job_id}{path}")).status_code == 404
        assert (await _events(owner, job_id))[-1].event == "succeeded"


async def test_an_image_that_somebody_deleted_is_an_internal_error_that_can_be_found_in_the_log(
    router: ServedRouter,
) -> None:
    async with router.http() as http:
        job_id = await _submit(http)
        await _events(http, job_id)
        for file in (router.folder / "data" / "artifacts").rglob(f"*{job_id}*"):
            file.unlink()
        answer = await http.get(f"/v1/jobs/{job_id}/image", headers={"X-Request-Id": "the-lost-one"})
    assert (answer.status_code, answer.json()["type"]) == (500, "internal")
    assert "the-lost-one" in answer.json()["detail"]
    assert str(router.folder) not in answer.text
    assert any("the-lost-one" in line and "was it removed by hand" in line for line in router.log.splitlines())
