"""OpenAI's Files, and the room that an API key has for them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import openai
import pytest

from tests.emulators.paced_process import PacedProcess
from tests.integration.router.openai_batches import QUICK, client_of, ended, jobs_of, line, lines_in, made, spelled
from tests.integration.router.served import ServedRouter, served_router, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


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


async def test_an_upload_beyond_the_quota_and_a_batch_of_too_large_answers_are_refused_with_what_to_do(
    worker: PacedProcess,
) -> None:
    async with served_router(FILES_GIB_PER_KEY="0.001", FILES_PER_KEY="4") as small:  # a MiB
        await small.use("b-1", worker, "batch")
        async with client_of(small) as client:
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


async def test_images_larger_than_foreseen_are_errors_of_their_lines_where_there_is_no_room_and_can_be_fetched(
    worker: PacedProcess,
) -> None:
    await worker.pace(QUICK.model_copy(update={"padding": 300_000}))  # a JPEG of 256x256 is foreseen to have 65,536
    async with served_router(FILES_GIB_PER_KEY="0.001") as small:  # a MiB
        await small.use("b-1", worker, "batch")
        async with client_of(small) as client:
            wanted = (line(str(n), output_format="jpeg", prompt="long " * 1000, seed=7) for n in range(4))
            batch = await ended(client, await made(client, spelled(wanted)))
            assert batch.status == "completed"
            output = await lines_in(client, batch.output_file_id)
            errors = await lines_in(client, batch.error_file_id)
            stored = sum([file.bytes async for file in client.files.list()])
        assert (list(output), list(errors)) == (["0", "1"], ["2", "3"])
        assert 2 * 400_000 < stored <= 2**30 * 0.001
        answer = errors["3"]["response"]
        assert (answer["status_code"], answer["body"]["error"]["code"]) == (403, "output_too_large")
        async with small.http() as http:
            image = await http.get(f"/v1/jobs/{answer['request_id']}/image")
        assert len(image.content) > 300_000


async def test_what_is_foreseen_for_the_lines_of_a_batch_is_together_what_it_was_promised() -> None:
    async with served_router() as early:  # nobody makes anything
        async with early.admin() as admin:
            await admin.expect("batch", 600)
        async with client_of(early) as client:
            lines = [line("png"), line("jpeg", output_format="jpeg", n=2), line("url", response_format="url")]
            batch = await made(client, spelled(lines))

            async def loaded() -> bool:
                return len(await jobs_of(early, batch)) == 4

            await until(loaded, "each line has its jobs")
        with closing(sqlite3.connect(f"file:{early.folder / 'data/router.db'}?mode=ro", uri=True)) as database:
            (promised,) = database.execute("SELECT promised FROM batches").fetchone()
            (foreseen,) = database.execute("SELECT sum(foreseen) FROM batch_lines").fetchone()
    assert foreseen == promised > 200_000


async def test_a_line_that_cannot_be_drawn_takes_no_room_from_the_others(worker: PacedProcess) -> None:
    async with served_router(FILES_GIB_PER_KEY="0.001", FILES_PER_KEY="1") as small:  # a MiB
        await small.use("b-1", worker, "batch")
        async with client_of(small) as client:
            lines = [line("good", response_format="url"), line("vast", size="99999x99999", n=2)]
            batch = await ended(client, await made(client, spelled(lines)))
            assert (batch.status, batch.errors) == ("completed", None), "the one file that may be kept is its input"
            assert set(await lines_in(client, batch.output_file_id)) == {"good"}
            assert set(await lines_in(client, batch.error_file_id)) == {"vast"}
