"""OpenAI's Files and Batches through OpenAI's own client: from the upload to the verified webhook."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

import httpx
import httpx2
import openai
import pytest
import pytest_asyncio
from openai.types import Batch
from openai.types.webhooks import BatchCompletedWebhookEvent

from router.contract import KeyRequest
from tests.emulators.paced_process import PacedProcess
from tests.emulators.paced_worker import Pace
from tests.emulators.receiver import receiver
from tests.integration.router.served import API_KEY, PUBLIC_URL, ServedRouter, served_router, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDPOINT: Literal["/v1/images/generations"] = "/v1/images/generations"
SMALL: dict[str, object] = {"prompt": "a press", "size": "256x256", "num_inference_steps": 1}
HEAD = b'--x\r\nContent-Disposition: form-data; name="%s"'
QUICK, SLOW = Pace(step_s=0.001, tail_s=0.001), Pace(step_s=0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(worker: PacedProcess) -> AsyncIterator[ServedRouter]:
    async with served_router(WEBHOOK_ALLOW="127.0.0.1") as served:
        await served.use("b-1", worker, "batch")
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(router: ServedRouter, worker: PacedProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    await worker.pace(QUICK)
    async with _client(router) as client:
        yield client


def _client(router: ServedRouter, key: str = API_KEY) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(transport=httpx2.AsyncHTTPTransport(uds=router.socket))
    return openai.AsyncOpenAI(base_url=f"{PUBLIC_URL}/v1", api_key=key, http_client=http, max_retries=0)


def line(custom_id: str, url: str = ENDPOINT, method: str = "POST", **body: object) -> dict[str, object]:
    return {"custom_id": custom_id, "method": method, "url": url, "body": {**SMALL, **body}}


def spelled(lines: Iterable[dict[str, object]]) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in lines)


async def made(client: openai.AsyncOpenAI, content: bytes, window: str = "24h", **more: object) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint=ENDPOINT,
        completion_window=window,  # type: ignore[arg-type]
        extra_body=more,
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async def over() -> bool:
        return (await client.batches.retrieve(batch.id)).status in ("completed", "failed", "expired", "cancelled")

    await until(over, f"{batch.id} has ended", within_s=600)
    return await client.batches.retrieve(batch.id)


async def lines_in(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """By custom id."""
    assert file_id is not None
    text = (await client.files.content(file_id)).text
    return {one["custom_id"]: one for one in map(json.loads, text.splitlines())}


async def test_a_file_is_uploaded_listed_read_and_removed(client: openai.AsyncOpenAI) -> None:
    content = spelled([line("a")])
    file = await client.files.create(
        file=("dir/prompts.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (file.bytes, file.filename, file.purpose, file.object) == (len(content), "prompts.jsonl", "batch", "file")
    assert (file.expires_at or 0) - file.created_at in (7199, 7200, 7201)
    second = await client.files.create(file=content, purpose="batch")
    assert [found.id async for found in client.files.list(limit=1)][:2] == [second.id, file.id]
    assert [found.id async for found in client.files.list(order="asc", purpose="batch")][:2] == [file.id, second.id]
    assert (await client.files.content(file.id)).content == content
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.content(file.id)


async def test_the_parts_of_a_form_may_come_in_any_order(router: ServedRouter) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    )
    async with router.http() as http:
        answer = await http.post("/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (answer.status_code, answer.json()["bytes"]) == (200, 3)


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ({"file": b"{}"}, {}, "purpose"),
        ({"file": b"{}"}, {"purpose": "vision"}, "purpose"),
        ({"file": b"{}"}, {"purpose": "batch", "tool": "x"}, "tool"),
        ({"file": b"{}"}, {"purpose": "batch", "expires_after[seconds]": "9"}, "expires_after[seconds]"),
        ({"image": b"{}"}, {"purpose": "batch"}, "image"),
        ({}, {"purpose": "batch"}, "file"),
    ],
)
async def test_what_is_wrong_with_an_upload_is_named(
    router: ServedRouter, files: dict[str, bytes], fields: dict[str, str], param: str
) -> None:
    parts: list[tuple[str, Any]] = [*files.items(), *((name, (None, value)) for name, value in fields.items())]
    async with router.http() as http:
        answer = await http.post("/v1/files", files=parts)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"", 415),
        ("multipart/form-data; boundary=x", b"nonsense", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n',
            400,
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"y" * 9000,
            400,
        ),
    ],
)
async def test_a_body_that_is_no_form_is_refused(
    router: ServedRouter, content_type: str, body: bytes, status: int
) -> None:
    async with router.http() as http:
        answer = await http.post("/v1/files", content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json().keys()) == (status, {"error"})


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


async def test_an_upload_beyond_the_quota_and_a_batch_of_too_large_answers_are_refused_with_what_to_do(
    worker: PacedProcess,
) -> None:
    async with served_router(FILES_GIB_PER_KEY="0.001", FILES_PER_KEY="4") as small:  # a MiB
        await small.use("b-1", worker, "batch")
        async with _client(small) as client:
            with pytest.raises(
                openai.PermissionDeniedError, match=r"may keep 1\.0 MiB of files.*delete some"
            ) as caught:
                await client.files.create(file=("in.jsonl", b"x" * 2**21), purpose="batch")
            assert caught.value.code == "files_full"
            inline = await ended(client, await made(client, spelled(line(str(n)) for n in range(5))))
            assert inline.status == "failed"
            assert inline.errors
            assert [fault.code for fault in inline.errors.data or []] == ["output_too_large"]
            by_url = (line(str(n), response_format="url") for n in range(4))
            assert (await ended(client, await made(client, spelled(by_url)))).status == "completed"
            await client.files.create(file=("in.jsonl", b"x"), purpose="batch")
            with pytest.raises(openai.PermissionDeniedError, match="keeps 4 files, and may keep 4"):
                await client.files.create(file=("in.jsonl", b"x"), purpose="batch")


async def test_a_line_that_cannot_be_drawn_takes_no_room_from_the_others(worker: PacedProcess) -> None:
    async with served_router(FILES_GIB_PER_KEY="0.001", FILES_PER_KEY="1") as small:  # a MiB
        await small.use("b-1", worker, "batch")
        async with _client(small) as client:
            lines = [line("good", response_format="url"), line("vast", size="99999x99999", n=2)]
            batch = await ended(client, await made(client, spelled(lines)))
            assert (batch.status, batch.errors) == ("completed", None), "the one file that may be kept is its input"
            assert set(await lines_in(client, batch.output_file_id)) == {"good"}
            assert set(await lines_in(client, batch.error_file_id)) == {"vast"}


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
    async with _client(router, other.key) as stranger:
        assert (await stranger.batches.list()).data == []
        with pytest.raises(openai.NotFoundError):
            await stranger.batches.retrieve(newest[0])
        with pytest.raises(openai.NotFoundError):
            await stranger.batches.cancel(newest[0])


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


@pytest.mark.parametrize(("lines", "kills"), [(200, 3), pytest.param(2000, 10, marks=pytest.mark.soak)])
async def test_a_batch_whose_router_is_killed_again_and_again_is_made_once(
    router: ServedRouter, client: openai.AsyncOpenAI, worker: PacedProcess, lines: int, kills: int
) -> None:
    draw = random.Random(lines)
    before = set((await worker.ledger()).finished)
    wanted = {str(n): 1 + n % 2 for n in range(lines)}
    images = sum(wanted.values())
    # While its lines become jobs, after so many of its images, and while they are written.
    seen: list[str | int] = ["in_progress", *sorted(draw.sample(range(1, images), kills - 2)), "finalizing"]
    batch = await made(client, spelled(line(name, n=count) for name, count in wanted.items()))
    for point in seen:
        await _reached(router, worker, batch, point, before)
        await router.stop(signal.SIGKILL)
        await router.start()
    async with _client(router) as again:
        batch = await ended(again, batch)
        assert batch.status == "completed"
        output = await lines_in(again, batch.output_file_id)
    assert list(output) == list(wanted)
    assert {name: len(one["response"]["body"]["data"]) for name, one in output.items()} == wanted
    jobs = await _jobs_of(router, batch)
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert len(jobs) == images
    # What the worker itself says that it drew: each job once, whichever router asked.
    drawn = [name.partition(".")[0] for name in (await worker.ledger()).finished if name not in before]
    assert sorted(drawn) == sorted(job["id"] for job in jobs)


async def _reached(
    router: ServedRouter, worker: PacedProcess, batch: Batch, point: str | int, before: set[str]
) -> None:
    """Returns when the batch is in that state, or past it, or the worker has drawn so many of its images."""
    order = ("validating", "in_progress", "finalizing", "completed")

    async def so() -> bool:
        if isinstance(point, int):
            return len(set((await worker.ledger()).finished) - before) >= point
        async with router.http() as http:
            status = (await http.get(f"/v1/batches/{batch.id}")).json()["status"]
        assert status in order, status
        return order.index(status) >= order.index(point)

    await until(so, f"{batch.id} is at {point}", within_s=600)


async def _jobs_of(router: ServedRouter, batch: Batch) -> list[dict[str, Any]]:
    found, after = list[dict[str, Any]](), ""
    async with router.http() as http:
        while True:
            params = httpx.QueryParams(batch=batch.id, limit=500, **({"after": after} if after else {}))
            page = (await http.get("/v1/jobs", params=params)).json()
            found += page["data"]
            if not page["has_more"]:
                return found
            after = found[-1]["id"]
