"""API keys, their limits, and Idempotency-Key, as clients and the operator meet them over HTTP."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from router.client import RouterRefusedError, RouterUnauthorizedError
from router.contract import INTERACTIVE, JobRequest, JobState, KeyLimitsView, KeyRequest
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.served import ServedRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = {"prompt": "a red fox", "width": 256, "height": 256, "steps": 2}
OPENAI = {"prompt": "a red fox", "size": "256x256", "num_inference_steps": 2}


async def new_key(router: ServedRouter, name: str, **limits: object) -> str:
    async with router.admin() as admin:
        return (await admin.create_key(KeyRequest(name=name, limits=KeyLimitsView.model_validate(limits)))).key


async def test_a_key_works_until_it_is_revoked_and_is_never_shown_again(router: ServedRouter) -> None:
    key = await new_key(router, "team-a")
    async with router.admin() as admin, router.client(key) as client:
        job = await client.wait((await client.submit(JobRequest(**SMALL))).id)
        assert job.state is JobState.SUCCEEDED
        assert key not in str(await admin.keys())
        with pytest.raises(RouterRefusedError, match="409"):
            await admin.create_key(KeyRequest(name="team-a"))
        (used,) = await admin.usage("team-a")
        assert (used.images, used.pixels) == (1, 256 * 256)
        revoked = await admin.revoke_key("team-a")
        assert revoked.revoked_at is not None
        with pytest.raises(RouterUnauthorizedError):
            await client.job(job.id)
        with pytest.raises(RouterRefusedError, match="key file"):
            await admin.revoke_key("default")


async def test_changing_keys_wants_the_admin_key(router: ServedRouter) -> None:
    async with router.admin("lp_not-the-admin-key-of-it") as stranger:
        with pytest.raises(RouterUnauthorizedError):
            await stranger.create_key(KeyRequest(name="mine"))
        assert "default" in {key.name for key in await stranger.keys()}


async def test_a_rate_is_told_in_every_answer_and_a_refusal_says_when(router: ServedRouter) -> None:
    key = await new_key(router, "slow", per_minute=2)
    async with router.http(key) as http:
        answers = [await http.post("/v1/images/generations", json=OPENAI) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"


async def test_a_key_may_be_kept_to_some_pools(router: ServedRouter) -> None:
    key = await new_key(router, "batch-only", pools=["batch"])
    async with router.http(key) as http:
        answer = await http.post("/v1/jobs", json=SMALL)
    assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")


async def test_a_request_that_is_sent_again_under_its_key_is_the_same_job(router: ServedRouter) -> None:
    again = {"Idempotency-Key": "once"}
    async with router.http() as http:
        first, second = [await http.post("/v1/jobs", json=SMALL, headers=again) for _ in range(2)]
        other = await http.post("/v1/jobs", json={**SMALL, "steps": 3}, headers=again)
        third = await http.post("/v1/jobs", json=SMALL, headers={"Idempotency-Key": "twice"})
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"] != third.json()["id"]
    assert (other.status_code, other.json()["type"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize(("path", "body"), [("/generate", SMALL), ("/v1/images/generations", OPENAI)])
async def test_open_requests_under_one_key_get_the_same_image(
    router: ServedRouter, worker: PacedProcess, path: str, body: dict[str, object]
) -> None:
    before = len((await worker.ledger()).started)
    async with router.http() as http:
        sent = [http.post(path, json=body, headers={"Idempotency-Key": f"same{path[-3:]}"}) for _ in range(3)]
        answers = await asyncio.gather(*sent)
    assert {answer.status_code for answer in answers} == {200}
    images = {str(answer.json().get("image") or answer.json()["data"][0]) for answer in answers}
    assert len(images) == 1
    assert len((await worker.ledger()).started) == before + 1


async def test_a_caller_who_went_away_and_sends_again_under_its_key_gets_what_had_started(
    router: ServedRouter, worker: PacedProcess
) -> None:
    again = {"Idempotency-Key": "patience"}
    body = {**SMALL, "steps": 20}
    before = await worker.ledger()
    await worker.pace(Pace(step_s=0.1, heartbeat_s=0.2))
    async with router.http(timeout_s=60) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/generate", json=body, headers=again, timeout=1.0)

        async def started() -> bool:
            return len((await worker.ledger()).started) == len(before.started) + 1

        await until(started, "the worker is at it")
        answer = await http.post("/generate", json=body, headers=again)
    await worker.pace(Pace())
    after = await worker.ledger()
    assert answer.status_code == 200
    assert (len(after.started), len(after.cancelled)) == (len(before.started) + 1, len(before.cancelled))


async def test_a_job_is_held_for_a_pool_that_is_expected_and_refused_for_one_that_is_not(router: ServedRouter) -> None:
    async with router.http() as http, router.admin() as admin:
        refused = await http.post("/v1/jobs", json={**SMALL, "pool": "later"})
        assert (refused.status_code, refused.json()["type"]) == (503, "pool_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        await admin.expect("later", 600)
        held = await http.post("/v1/jobs", json={**SMALL, "pool": "later"})
        assert (held.status_code, held.json()["state"]) == (202, "queued")


async def test_what_no_worker_of_the_pool_can_make_is_refused_by_name(router: ServedRouter) -> None:
    async with router.http() as http:
        answer = await http.post("/v1/jobs", json={**SMALL, "tier": "fp8", "pool": INTERACTIVE})
    assert (answer.status_code, answer.json()["type"]) == (503, "unmakeable")
    assert "tier fp8" in answer.json()["detail"]


async def test_what_no_worker_can_make_yet_waits_where_the_pool_expects_more(
    router: ServedRouter, worker: PacedProcess
) -> None:
    wanted = {**SMALL, "model": "house", "pool": "growing"}
    async with router.http() as http, router.admin() as admin, paced_worker(Pace(model="house")) as coming:
        try:
            await router.use("growing-1", worker, "growing")

            async def said() -> bool:
                return (await http.post("/v1/jobs", json=wanted)).status_code == 503

            await until(said, "the worker has said what it can do")
            await admin.expect("growing", 600)
            answer = await http.post("/v1/jobs", json=wanted)
            assert answer.status_code == 202
            await router.use("growing-2", coming, "growing")

            async def made() -> bool:
                job = (await http.get(f"/v1/jobs/{answer.json()['id']}")).json()
                return bool(job["state"] == "succeeded")

            await until(made, "the worker that came has made it")
        finally:
            for name in ("growing-1", "growing-2"):
                await admin.remove(name)
        assert len((await coming.ledger()).finished) == 1


async def test_a_deadline_that_has_passed_is_refused(router: ServedRouter) -> None:
    async with router.http() as http:
        answer = await http.post("/v1/jobs", json={**SMALL, "deadline": "2020-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["errors"]) == (422, ["deadline: has passed already"])
