"""OpenAI's Batches through OpenAI's own client: from the creation to the verified webhook."""

from __future__ import annotations

import asyncio
import base64

import httpx
import openai
import pytest
from openai.types.webhooks import BatchCompletedWebhookEvent

from router.client import AdminClient
from router.contract import KeyRequest, WorkerRegistration
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.emulators.receiver import receiver
from tests.integration.router.openai_batches import (
    ENDPOINT,
    QUICK,
    client_of,
    ended,
    jobs_of,
    line,
    lines_in,
    made,
    spelled,
)
from tests.integration.router.served import ServedRouter, served_router, until

SLOW = Pace(step_s=0.3)
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_batch_is_made_and_its_owner_told_in_the_form_that_openais_client_verifies(
    router: ServedRouter, client: openai.AsyncOpenAI
) -> None:
    async with receiver() as hook:
        lines = [
            line("one", seed=7),
            line("four", n=4, response_format="url", quality="low", num_inference_steps=None),
            line("bad", size="1000x1000"),
            line("long", prompt="word " * 3000),
            line("unknown", model="nobodys"),
            line("alias", model="gpt-image-1", output_format="webp"),
        ]
        batch = await made(client, spelled(lines) + b"\n\n", metadata={"who": "me"}, webhook=hook.url())
        assert (batch.status, batch.metadata) == ("validating", {"who": "me"})
        batch = await ended(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (6, 3, 3)
        assert batch.in_progress_at
        assert batch.finalizing_at
        assert batch.completed_at

        output = await lines_in(client, batch.output_file_id)
        assert list(output) == ["one", "four", "alias"]
        body = output["one"]["response"]["body"]
        assert (output["one"]["response"]["status_code"], output["one"]["error"]) == (200, None)
        assert body["data"][0]["seed"] == 7
        assert base64.b64decode(body["data"][0]["b64_json"]).startswith(b"\x89PNG")
        assert output["one"]["response"]["request_id"].startswith("job_")
        four = output["four"]["response"]["body"]
        assert (len(four["data"]), four["quality"], four["usage"]["output_tokens"]) == (4, "low", 4 * 256)
        async with router.http("") as stranger:
            assert (await stranger.get(four["data"][3]["url"])).status_code == 200
        assert output["alias"]["response"]["body"]["output_format"] == "webp"

        errors = await lines_in(client, batch.error_file_id)
        assert {name: one["response"]["status_code"] for name, one in errors.items()} == {
            "bad": 400,
            "long": 400,
            "unknown": 404,
        }
        assert errors["bad"]["response"]["body"]["error"]["param"] == "size"

        sent = (await hook.has(1))[0]
        async with router.http() as http:
            (secret,) = (await http.get("/v1/webhooks/secrets")).json()["secrets"]
        event = client.webhooks.unwrap(sent.body.decode(), sent.headers, secret=secret)
        assert isinstance(event, BatchCompletedWebhookEvent)
        assert (event.type, event.data.id) == ("batch.completed", batch.id)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(sent.body.decode() + " ", sent.headers, secret=secret)


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"\n \n", [("empty_file", None)]),
        (spelled([line("a"), line("a")]), [("duplicate_custom_id", 2)]),
        (spelled([line("a")]) + b"\n{\n[]", [("invalid_json_line", 2), ("invalid_value", 3)]),
        (spelled([line("a", url="/v1/embeddings")]), [("mismatched_url", 1)]),
        (spelled([line("a", method="GET")]), [("invalid_value", 1)]),
        (b'{"custom_id": "a"}', [("missing_required_parameter", 1)]),
        (spelled([line("a")]) + b"\n" + b"x" * (2**20 + 1), [("line_too_long", 2)]),
        # Nothing of it can be made: by its lines.
        (spelled([line("a", size="1x1"), line("b", n=11)]), [("invalid_value", 1), ("invalid_value", 2)]),
    ],
)
async def test_a_file_of_which_nothing_can_be_made_fails_with_its_lines(
    client: openai.AsyncOpenAI, content: bytes, faults: list[tuple[str, int | None]]
) -> None:
    batch = await ended(client, await made(client, content))
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.errors
    assert [(fault.code, fault.line) for fault in batch.errors.data or []] == faults
    assert batch.output_file_id is None


async def test_what_a_batch_cannot_be_made_of_is_refused_by_name(client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", spelled([line("a")])), purpose="batch")
    refused: list[tuple[str, dict[str, object]]] = [
        ("input_file_id", {"input_file_id": "file_nobodys"}),
        ("completion_window", {"completion_window": "soon"}),
        ("completion_window", {"completion_window": "31d"}),
        ("endpoint", {"endpoint": "/v1/embeddings"}),
        ("metadata", {"metadata": {str(n): "x" for n in range(17)}}),
        ("webhook", {"webhook": "ftp://x"}),
        ("notes", {"notes": 1}),
    ]
    for param, fields in refused:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", extra_body=fields
            )
        assert caught.value.param == param
    with pytest.raises(openai.InternalServerError, match="pool interactive: no worker"):
        await client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", extra_body={"pool": "interactive"}
        )


async def test_a_cancelled_batch_keeps_what_was_made(client: openai.AsyncOpenAI, worker: PacedProcess) -> None:
    await worker.pace(SLOW)
    batch = await made(client, spelled(line(str(n)) for n in range(40)))

    async def begun() -> bool:
        counts = (await client.batches.retrieve(batch.id)).request_counts
        return counts is not None and counts.completed > 0

    await until(begun, "one image is made")
    with pytest.raises(openai.BadRequestError, match="which is not over"):
        await client.files.delete(batch.input_file_id)
    asked = await client.batches.cancel(batch.id)
    assert asked.status == "cancelling"
    assert asked.cancelling_at
    batch = await ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelled_at
    made_lines, lost = await lines_in(client, batch.output_file_id), await lines_in(client, batch.error_file_id)
    assert batch.request_counts
    assert len(made_lines) == batch.request_counts.completed > 0
    assert len(made_lines) + len(lost) == 40
    assert {one["error"]["code"] for one in lost.values()} == {"batch_cancelled"}
    assert (await client.batches.cancel(batch.id)).status == "cancelled"


async def test_a_batch_that_is_over_cannot_be_cancelled(client: openai.AsyncOpenAI) -> None:
    batch = await ended(client, await made(client, spelled([line("a")])))
    with pytest.raises(openai.BadRequestError, match="completed and can no longer be cancelled"):
        await client.batches.cancel(batch.id)
    assert (await client.files.delete(batch.input_file_id)).deleted


async def test_batches_are_listed_page_by_page_and_only_to_their_owner(
    router: ServedRouter, client: openai.AsyncOpenAI
) -> None:
    newest = [(await made(client, spelled([line("a")]))).id for _ in range(5)][::-1]
    page = await client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == newest[:2]
    assert page.has_more
    assert [batch.id async for batch in client.batches.list(limit=2)][:5] == newest
    async with router.admin() as admin:
        other = await admin.create_key(KeyRequest(name="other-of-batches"))
    async with client_of(router, other.key) as stranger:
        assert (await stranger.batches.list()).data == []
        with pytest.raises(openai.NotFoundError):
            await stranger.batches.retrieve(newest[0])
        with pytest.raises(openai.NotFoundError):
            await stranger.batches.cancel(newest[0])


async def queued(admin: AdminClient, pool: str) -> int:
    return sum(view.queued for view in await admin.pools() if view.name == pool)


async def test_a_line_whose_model_no_worker_has_named_yet_waits_for_the_worker_that_serves_it(
    worker: PacedProcess,
) -> None:
    await worker.pace(QUICK)
    house = "ideogram-v4-house"  # it begins as the hosted API's names do, which mean any worker here
    async with served_router() as early, early.admin() as admin, paced_worker(Pace(model=house)) as second:
        silent = WorkerRegistration(url="http://127.0.0.1:1", token=worker.token, pool="batch")
        await admin.register("b-1", silent)
        async with client_of(early) as client:
            lines = [line("house", model=house), line("other", model="stable-diffusion"), line("any", model="dall-e-3")]
            batch = await made(client, spelled(lines))
            asked = client.images.generate(prompt="a", model=house, size="256x256", extra_body={"pool": "batch"})
            held_open = asyncio.create_task(asked)

            async def waiting() -> bool:
                return len(await jobs_of(early, batch)) == 3 and await queued(admin, "batch") == 4

            await until(waiting, "each line is a job, and so is the open request")
            await admin.remove("b-1")
            await early.use("b-2", worker, "batch")
            await early.use("b-3", second, "batch")

            async def done() -> bool:
                counts = (await client.batches.retrieve(batch.id)).request_counts
                return counts is not None and counts.completed == 2

            await until(done, "what can be made is made")
            assert (await held_open).data
            late = await ended(client, await made(client, spelled([line("other", model="stable-diffusion")])))
            await client.batches.cancel(batch.id)
            output = await lines_in(client, (await ended(client, batch)).output_file_id)
            await admin.expect("batch", 600)
            expecting = await made(client, spelled([line("other", model="stable-diffusion")]))

            async def held() -> bool:
                return len(await jobs_of(early, expecting)) == 1

            await until(held, "a machine on its way may serve it")
        drawn = {name.partition(".")[0] for name in (await second.ledger()).finished}
    assert set(output) == {"house", "any"}
    assert output["house"]["response"]["request_id"] in drawn
    assert late.status == "failed", "all have spoken, and none serves it"


async def test_the_same_key_makes_one_batch(router: ServedRouter, client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", spelled([line("a")])), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
    async with router.http() as http:
        headers = {"Idempotency-Key": "batch-once"}
        asked = (http.post("/v1/batches", json=body, headers=headers) for _ in range(5))
        answers: list[httpx.Response] = await asyncio.gather(*asked)
        other = await http.post("/v1/batches", json={**body, "completion_window": "2h"}, headers=headers)
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert other.status_code == 422


async def test_a_batchs_jobs_are_listed_as_its_own(router: ServedRouter, client: openai.AsyncOpenAI) -> None:
    batch = await ended(client, await made(client, spelled(line(str(n)) for n in range(3))))
    async with router.http() as http:
        page = (await http.get("/v1/jobs", params={"batch": batch.id, "state": "succeeded"})).json()
    assert [job["batch"] for job in page["data"]] == [batch.id] * 3
    assert not page["has_more"]
