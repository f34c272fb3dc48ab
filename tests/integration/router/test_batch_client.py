"""`letterpress batch` and `letterpress generate` against a served router: what goes wrong, and what comes of it."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image

from router.client.batch import BatchError, ByRouter, Defaults, Patience, Settings
from router.contract import KeyLimitsView, KeyRequest
from tests.emulators.pace import Fault, Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.batch_rig import count, last, ran, settings
from tests.integration.router.batching import COMMAND, Batch, door
from tests.integration.router.served import API_KEY, ROOT, ServedRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def maker(router: ServedRouter) -> AsyncIterator[ByRouter]:
    async with router.client() as client:
        yield ByRouter(client, Patience(60, lambda _: None))


async def test_bad_lines_are_named_and_the_others_are_made(maker: ByRouter, tmp_path: Path) -> None:
    wanted = settings(
        tmp_path,
        "a fox",
        {"id": "second", "prompt": "a hen", "format": "jpeg"},
        '{"prompt": "broken',
        {"id": "SECOND", "prompt": "the same name"},
        {"id": "not/a file", "prompt": "a cat", "seed": 7},
    )
    outcome, heard = await ran(wanted, maker)
    assert not outcome.whole
    assert heard.lines.keys() == {3, 4}
    assert "called 'second' already" in heard.lines[4]
    entries = last(tmp_path)
    assert [entries[number]["state"] for number in range(1, 6)] == [
        "succeeded",
        "succeeded",
        "invalid",
        "invalid",
        "succeeded",
    ]
    assert [entries[number]["file"] for number in (1, 2, 5)] == ["000001.png", "second.png", "000005.png"]
    about = json.loads((tmp_path / "out/000005.json").read_text())
    assert (about["id"], about["seed"], about["request"]["prompt"]) == ("not/a file", 7, "a cat")


@pytest.mark.parametrize("model", ["house-style", "gpt-image-1", "ideogram-4", "paced"])
async def test_a_line_of_openais_is_made_by_whatever_the_router_knows_its_model_as(
    maker: ByRouter, tmp_path: Path, model: str
) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/images/generations",
        "body": {"prompt": "a", "model": model},
    }
    outcome, heard = await ran(settings(tmp_path, line), maker)
    assert (outcome.whole, outcome.tally.done) == (True, 1), heard.lines


async def test_again_makes_nothing_and_a_file_that_was_damaged_or_lost_is_fetched_again(
    router: ServedRouter, maker: ByRouter, tmp_path: Path
) -> None:
    wanted = settings(tmp_path, "one", "two", "three")
    await ran(wanted, maker)
    before, made = last(tmp_path), await count(router)
    images = {number: (tmp_path / f"out/{number:06d}.png").read_bytes() for number in (1, 2, 3)}
    (tmp_path / "out/000001.png").write_bytes(images[1][:-1] + b"?")
    (tmp_path / "out/000002.png").unlink()
    outcome, heard = await ran(wanted, maker)
    assert (outcome.whole, outcome.tally.done, outcome.tally.done_before, heard.checked) == (True, 2, 1, 3)
    assert {number: (tmp_path / f"out/{number:06d}.png").read_bytes() for number in (1, 2, 3)} == images
    assert await count(router) == made, "an image was made although the router had it"
    assert last(tmp_path)[1]["job"] == before[1]["job"]


async def test_other_defaults_than_the_batchs_own_are_refused(maker: ByRouter, tmp_path: Path) -> None:
    wanted = settings(tmp_path, "one")
    await ran(wanted, maker)
    with pytest.raises(BatchError, match=r"width: 512 now, and .* was begun with 256"):
        await ran(Settings(wanted.source, wanted.out, defaults=Defaults(width=512)), maker)
    outcome, _ = await ran(Settings(wanted.source, wanted.out), maker)
    assert outcome.whole


async def test_a_batch_that_began_without_pools_goes_on_in_one(
    router: ServedRouter, maker: ByRouter, tmp_path: Path
) -> None:
    await ran(settings(tmp_path, "one", "two", "three", limit=1), maker)
    await ran(settings(tmp_path, "one", "two", "three", limit=1, pool="interactive"), maker)
    named = Settings(tmp_path / "prompts.jsonl", tmp_path / "out", defaults=Defaults(pool="interactive"))
    outcome, _ = await ran(named, maker)
    assert (outcome.whole, outcome.tally.done) == (True, 1)
    elsewhere = settings(tmp_path, "one", "two", "three", "four", pool="nobodys")
    async with router.client() as client:
        with pytest.raises(BatchError, match="no worker is registered"):
            await ran(elsewhere, ByRouter(client, Patience(0, lambda _: None)))


async def test_a_folder_begun_at_one_worker_is_gone_on_with_at_a_router(
    router: ServedRouter, worker: PacedProcess, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("one\n")
    (tmp_path / "token").write_text(worker.token)
    words = ("batch", str(tmp_path / "p.txt"), str(tmp_path / "out"), "--size", "256x256", "--steps", "2")
    alone = ("--worker", worker.url, "--token-file", str(tmp_path / "token"))
    async with door(router) as url:
        code, out, said = await _letterpress(url, *words, *alone)
        assert code == 0, (out, said)
        for more in ((), ("--pool", "interactive")):
            code, out, said = await _letterpress(url, *words, *more)
            assert code == 0, (out, said)


async def test_a_limit_leaves_the_rest_for_the_next_run(maker: ByRouter, tmp_path: Path) -> None:
    outcome, _ = await ran(settings(tmp_path, "one", "two", "three", limit=2), maker)
    assert (outcome.tally.done, outcome.tally.left_for_later) == (2, 1)
    outcome, _ = await ran(settings(tmp_path, "one", "two", "three", limit=2), maker)
    assert (outcome.tally.done, outcome.tally.finished) == (1, 3)


async def test_what_failed_is_tried_again_only_when_that_is_said(
    worker: PacedProcess, maker: ByRouter, tmp_path: Path
) -> None:
    # One worker: three crashes end a job for good.
    await worker.pace(Pace(fault=Fault.CRASH, times=3))
    outcome, heard = await ran(settings(tmp_path, "one"), maker)
    assert "engine_error" in heard.lines[1]
    assert outcome.tally.failed == 1
    outcome, _ = await ran(settings(tmp_path, "one"), maker)
    assert (outcome.tally.failed, outcome.tally.done) == (1, 0)
    outcome, _ = await ran(settings(tmp_path, "one", retry_failed=True), maker)
    assert (outcome.whole, outcome.tally.done) == (True, 1)
    assert last(tmp_path)[1]["try"] == 2


async def test_a_line_costs_the_attempt_that_made_its_image_and_not_the_ones_before(
    worker: PacedProcess, maker: ByRouter, tmp_path: Path
) -> None:
    await worker.pace(Pace(step_s=0.1, fault=Fault.CRASH, times=1))
    outcome, _ = await ran(settings(tmp_path, "one"), maker)
    job = last(tmp_path)[1]["job"]
    lost, made = (span.ended - span.begun for span in await worker.spans() if span.name.startswith(f"{job}."))
    assert outcome.whole
    assert lost > 0.2
    assert 0.2 < outcome.tally.gpu_s <= made + 0.001  # it is noted in milliseconds
    assert json.loads((tmp_path / "out/000001.json").read_text())["gpu_s"] == last(tmp_path)[1]["gpu_s"]


async def test_a_key_that_may_have_few_jobs_waiting_is_enough_for_many_lines(
    router: ServedRouter, tmp_path: Path
) -> None:
    async with router.admin() as admin:
        made = await admin.create_key(
            KeyRequest(name="narrow", limits=KeyLimitsView(running=1, waiting=2, per_minute=600))
        )
    told: list[str] = []
    async with router.client(made.key) as client:
        narrow = ByRouter(client, Patience(60, told.append))
        outcome, _ = await ran(settings(tmp_path, *(f"picture {number}" for number in range(4)), concurrency=4), narrow)
    assert (outcome.whole, outcome.tally.done) == (True, 4)
    assert any("429" in why for why in told)


async def test_a_wrong_key_ends_it_at_once_with_what_to_do(router: ServedRouter, tmp_path: Path) -> None:
    async with router.client("wrong") as client:
        with pytest.raises(BatchError, match=r"401.*give the key of this router"):
            await ran(settings(tmp_path, "one"), ByRouter(client, Patience(60, lambda _: None)))


async def test_an_input_that_is_not_there_or_can_be_read_once_only_is_said_to_be_so(
    maker: ByRouter, tmp_path: Path
) -> None:
    with pytest.raises(BatchError, match=r"there is no file .*prompts\.txt$"):
        await ran(Settings(tmp_path / "prompts.txt", tmp_path / "out"), maker)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BatchError, match="cannot come by a pipe"):
        await ran(Settings(tmp_path / "pipe", tmp_path / "out"), maker)


async def test_patience_ends_when_nothing_goes_well(router: ServedRouter, tmp_path: Path) -> None:
    async with router.client() as client:
        impatient = ByRouter(client, Patience(0, lambda _: None))
        wanted = settings(tmp_path, "one", pool="nobodys")
        with pytest.raises(BatchError, match=r"nothing has gone well for .* no worker is registered"):
            await ran(wanted, impatient)


async def test_a_line_that_no_worker_can_make_fails_alone_by_its_number_and_holds_no_other_back(
    router: ServedRouter, tmp_path: Path
) -> None:
    wanted = settings(
        tmp_path,
        *({"prompt": f"picture {number}", "model": "nobodys"} for number in (1, 2, 3)),
        {"prompt": "too fine", "tier": "fp8"},
        {"prompt": "not here", "pool": "nobodys"},
        *(f"picture {number}" for number in range(6, 10)),
        concurrency=2,
        pool="interactive",
        unmakeable_s=0.0,
    )
    async with router.client() as client:
        outcome, heard = await ran(wanted, ByRouter(client, Patience(0, lambda _: None)))
    assert (outcome.tally.done, outcome.tally.failed) == (4, 5)
    assert heard.put_aside.keys() == heard.lines.keys() == {1, 2, 3, 4, 5}
    assert "unmakeable: pool interactive: no worker there makes images of 256x256 with model nobodys" in heard.lines[1]
    assert "with tier fp8" in heard.lines[4]
    assert "pool nobodys: no worker is registered" in heard.lines[5]
    assert [last(tmp_path)[number]["state"] for number in (1, 5, 6, 9)] == ["failed", "failed"] + ["succeeded"] * 2


@pytest.mark.parametrize("said", [{"pool": "away"}, {"tier": "fp8"}, {"model": "away"}])
async def test_what_meets_every_line_fails_none_and_ends_the_batch_when_patience_is_out(
    maker: ByRouter, tmp_path: Path, said: dict[str, str]
) -> None:
    pictures = [{"prompt": f"picture {number}", **said} for number in range(3)]
    wanted = settings(tmp_path, *pictures, unmakeable_s=0.0, patience_s=0.0)
    with pytest.raises(BatchError, match=r"no line could be made for .*; last: line \d"):
        await ran(wanted, maker)
    assert not last(tmp_path), "nothing is given up: the same again asks for all"


async def test_a_line_whose_worker_comes_later_is_made_after_the_others(
    router: ServedRouter, maker: ByRouter, tmp_path: Path
) -> None:
    wanted = settings(
        tmp_path, {"prompt": "a house", "model": "house"}, "a fox", "a hen", concurrency=2, unmakeable_s=6.0
    )
    running = asyncio.create_task(ran(wanted, maker))

    async def others_made() -> bool:
        return {entry["line"] for entry in Batch(wanted.source, wanted.out, ()).entries()} >= {2, 3}

    async with paced_worker(Pace(model="house")) as house, router.admin() as admin:
        await until(others_made, "the other lines have their images")
        try:
            await router.use("house-1", house)
            outcome, heard = await running
        finally:
            await admin.remove("house-1")
    assert (outcome.whole, outcome.tally.done, list(heard.put_aside), heard.lines) == (True, 3, [1], {})


async def _letterpress(url: str, *words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *words,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "LETTERPRESS_URL": url, "LETTERPRESS_API_KEY": API_KEY, "COLUMNS": "200"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate(stdin)
    return process.returncode or 0, out, err.decode()


def picture(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


async def test_generate_saves_images_and_says_their_seeds(router: ServedRouter, tmp_path: Path) -> None:
    async with door(router) as url:
        small = ("--size", "256x320", "--steps", "2")
        code, _, said = await _letterpress(
            url, "generate", "a fox", "-o", str(tmp_path / "x.png"), "-n", "2", "--seed", "7", *small
        )
        assert code == 0, said
        assert {"seed 7", "seed 8"} == {line.rpartition(", ")[2] for line in said.splitlines()}
        assert [picture(tmp_path / f"x-{number}.png").size for number in (1, 2)] == [(256, 320)] * 2
        code, out, said = await _letterpress(url, "generate", "-", "-o", "-", *small, stdin=b"a fox")
        assert (code, Image.open(io.BytesIO(out)).size) == (0, (256, 320)), said


async def test_a_token_that_is_none_and_a_router_that_is_away_are_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    words = ("batch", str(tmp_path / "p.txt"), str(tmp_path / "out"), "--worker", "http://127.0.0.1:1", "--token-file")
    code, _, said = await _letterpress("http://127.0.0.1:1", *words, str(tmp_path / "p.txt"))
    assert (code, "holds no key" in said) == (1, True), said
    code, _, said = await _letterpress("http://127.0.0.1:1", "generate", "a fox", "-o", str(tmp_path / "x.png"))
    assert (code, "the router does not answer" in said) == (1, True), said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-o", "x.gif"), "say --format"),
        (("-o", "x.png", "--size", "1000x1024"), "multiple of 16"),
        (("-o", "x.png", "--preset", "best"), "preset"),
        (("-o", "/nowhere/x.png", "--size", "256x256", "--steps", "1"), "/nowhere is no folder: make it first"),
    ],
)
async def test_generate_says_what_is_wrong(router: ServedRouter, words: tuple[str, ...], why: str) -> None:
    async with door(router) as url:
        code, _, said = await _letterpress(url, "generate", "a fox", *words)
    assert code in (1, 2)
    assert why in " ".join(said.split())
    assert "Traceback" not in said
