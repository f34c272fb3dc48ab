"""`letterpress batch` and `letterpress generate` against a served router: what goes wrong, and what comes of it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image

from router.client.batch import BatchError, ByRouter, Defaults, Outcome, Patience, Settings, Tally, run
from router.contract import JobState, KeyLimitsView, KeyRequest
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.emulators.paced_worker import Fault, Pace
from tests.integration.router.batching import COMMAND, Batch, door
from tests.integration.router.served import API_KEY, ROOT, ServedRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = Defaults(width=256, height=256, steps=2)


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}
        self.put_aside: dict[int, str] = {}
        self.checked = 0

    def checking(self, done: int, total: int) -> None:
        assert done <= total
        self.checked = done

    def begins(self, tally: Tally) -> None:
        pass

    def moved(self) -> None:
        pass

    def bad(self, line: int, why: str) -> None:
        self.lines[line] = why

    def aside(self, line: int, why: str) -> None:
        self.put_aside[line] = why


@pytest_asyncio.fixture(loop_scope="module")
async def maker(router: ServedRouter) -> AsyncIterator[ByRouter]:
    async with router.client() as client:
        yield ByRouter(client, Patience(60, lambda _: None))


async def ran(settings: Settings, maker: ByRouter) -> tuple[Outcome, Heard]:
    heard = Heard()
    return await run(settings, lambda: maker, heard), heard


def settings(tmp_path: Path, *lines: object, **more: object) -> Settings:
    source = tmp_path / "prompts.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    source.write_text("".join(f"{text}\n" for text in texts))
    return Settings(source, tmp_path / "out", defaults=SMALL, **more)  # type: ignore[arg-type]


def last(tmp_path: Path) -> dict[int, dict[str, object]]:
    batch = Batch(tmp_path / "prompts.jsonl", tmp_path / "out", ())
    return {entry["line"]: entry for entry in batch.entries()}


async def count(router: ServedRouter) -> int:
    async with router.admin() as admin:
        (pool,) = await admin.pools()
    return pool.succeeded


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


async def test_lines_edited_after_their_image_stop_it_unless_they_are_meant(maker: ByRouter, tmp_path: Path) -> None:
    await ran(settings(tmp_path, "one", "two"), maker)
    edited = settings(tmp_path, "one", "TWO", "three")
    with pytest.raises(BatchError, match=r"lines 2 are not those that images were made of \(1 in all\)"):
        await ran(edited, maker)
    outcome, _ = await ran(settings(tmp_path, "one", "TWO", "three", redo_changed=True), maker)
    assert (outcome.whole, outcome.tally.done) == (True, 2)
    assert json.loads((tmp_path / "out/000002.json").read_text())["request"]["prompt"] == "TWO"


@pytest.mark.parametrize("now", ["TWO", '{"prompt": "two", broken', ""], ids=["another", "invalid", "gone"])
async def test_what_was_begun_of_a_line_that_is_not_what_it_was_is_cancelled(
    router: ServedRouter, worker: PacedProcess, maker: ByRouter, tmp_path: Path, now: str
) -> None:
    await worker.pace(Pace(step_s=60))  # nothing ends by itself
    first = asyncio.create_task(ran(settings(tmp_path, "one", "two"), maker))

    async def begun() -> bool:
        return {entry["line"] for entry in Batch(tmp_path / "prompts.jsonl", tmp_path / "out", ()).entries()} == {1, 2}

    await until(begun, "both lines have their jobs")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    jobs = {number: str(entry["job"]) for number, entry in last(tmp_path).items()}
    again = asyncio.create_task(ran(settings(tmp_path, "one", now), maker))
    async with router.client() as client:

        async def cancelled() -> bool:
            return (await client.job(jobs[2])).state is JobState.CANCELLED

        await until(cancelled, "the old line's job is cancelled")
        assert (await client.job(jobs[1])).state is not JobState.CANCELLED
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        await client.cancel(jobs[1])
    await worker.begin_again()  # its pace, and what it was still at
    # As it was again: another try, which the cancelled job does not answer for.
    outcome, heard = await ran(settings(tmp_path, "one", "two"), maker)
    assert (outcome.tally.done, list(heard.lines)) == (1, [1])
    assert (last(tmp_path)[2]["state"], last(tmp_path)[2]["job"] != jobs[2]) == ("succeeded", True)


async def test_a_file_that_is_written_anew_meanwhile_stops_it_before_half_a_line_is_asked_for(
    worker: PacedProcess, maker: ByRouter, tmp_path: Path
) -> None:
    await worker.pace(Pace(step_s=0.05))
    lines = [f"{number} {'long ' * 1000}" for number in range(1, 31)]  # more than is read ahead
    wanted = settings(tmp_path, *lines, concurrency=1)
    running = asyncio.create_task(ran(wanted, maker))

    async def begun() -> bool:
        return bool(Batch(wanted.source, wanted.out, ()).entries())

    await until(begun, "the first line has its job")
    with wanted.source.open("r+") as file:  # in place, as some editors do
        file.write("a word more, " + "\n".join(lines))
    with pytest.raises(BatchError, match=r"line \d+ was edited while the batch ran"):
        await running
    assert {entry["state"] for entry in last(tmp_path).values()} == {"succeeded"}
    asked = {json.loads(path.read_text())["request"]["prompt"] for path in wanted.out.glob("0*.json")}
    assert asked <= set(lines)


async def test_other_defaults_than_the_batchs_own_are_refused(maker: ByRouter, tmp_path: Path) -> None:
    wanted = settings(tmp_path, "one")
    await ran(wanted, maker)
    with pytest.raises(BatchError, match=r"width: 512 now, and .* was begun with 256"):
        await ran(Settings(wanted.source, wanted.out, defaults=Defaults(width=512)), maker)
    outcome, _ = await ran(Settings(wanted.source, wanted.out), maker)
    assert outcome.whole


async def test_an_image_that_is_there_keeps_its_name_from_a_line_that_was_mended_before_it(
    maker: ByRouter, tmp_path: Path
) -> None:
    hen = {"id": "cat", "prompt": "a hen"}
    await ran(settings(tmp_path, '{"id": "cat", broken', hen), maker)
    before = (tmp_path / "out/cat.png").read_bytes()
    outcome, heard = await ran(settings(tmp_path, {"id": "cat", "prompt": "a fox"}, hen), maker)
    assert (outcome.tally.finished, outcome.tally.done, list(heard.lines)) == (1, 0, [1])
    assert "called 'cat' already" in heard.lines[1]
    assert (tmp_path / "out/cat.png").read_bytes() == before
    assert [entry["state"] for entry in last(tmp_path).values()] == ["invalid", "succeeded"]
    redone = settings(tmp_path, {"id": "cat", "prompt": "a fox"}, {**hen, "seed": 3}, redo_changed=True)
    outcome, heard = await ran(redone, maker)
    assert (outcome.tally.done, list(heard.lines)) == (1, [2])
    assert last(tmp_path)[2]["state"] == "succeeded"  # of what it was


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


async def test_patience_ends_when_nothing_goes_well(router: ServedRouter, tmp_path: Path) -> None:
    async with router.client() as client:
        impatient = ByRouter(client, Patience(0, lambda _: None))
        wanted = settings(tmp_path, {"prompt": "one", "pool": "nobodys"})
        with pytest.raises(BatchError, match=r"nothing has gone well for .* no worker is registered"):
            await ran(wanted, impatient)


async def test_a_line_that_no_worker_can_make_fails_alone_by_its_number_and_holds_no_other_back(
    router: ServedRouter, tmp_path: Path
) -> None:
    wanted = settings(
        tmp_path,
        *({"prompt": f"picture {number}", "model": "nobodys"} for number in (1, 2, 3)),
        {"prompt": "too fine", "tier": "fp8"},
        *(f"picture {number}" for number in range(5, 9)),
        concurrency=2,
        unmakeable_s=0.0,
    )
    async with router.client() as client:
        outcome, heard = await ran(wanted, ByRouter(client, Patience(0, lambda _: None)))
    assert (outcome.tally.done, outcome.tally.failed) == (4, 4)
    assert heard.put_aside.keys() == heard.lines.keys() == {1, 2, 3, 4}
    assert "unmakeable: pool interactive: no worker there makes images of 256x256 with model nobodys" in heard.lines[1]
    assert "with tier fp8" in heard.lines[4]
    assert [last(tmp_path)[number]["state"] for number in (1, 4, 5, 8)] == ["failed", "failed"] + ["succeeded"] * 2


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
