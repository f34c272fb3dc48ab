"""A batch whose input is another when it goes on: lines that were edited, are gone, or are written anew meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from router.client.batch import BatchError, ByRouter, Patience, run
from router.client.batch.makers import Made, Work
from router.contract import JobState
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.batch_rig import Heard, count, last, ran, settings
from tests.integration.router.batching import Batch
from tests.integration.router.served import ServedRouter, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def maker(router: ServedRouter) -> AsyncIterator[ByRouter]:
    async with router.client() as client:
        yield ByRouter(client, Patience(60, lambda _: None))


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


class DiedError(BaseException):
    """In the place of a kill -9."""


class Dying(ByRouter):
    """Dies when the router has taken a line on, and before that is noted."""

    async def make(self, work: Work, begun: Callable[[str], Awaitable[None]]) -> Made:  # noqa: ARG002 - never called
        async def killed(job: str) -> None:
            raise DiedError(job)

        return await super().make(work, killed)


@pytest.mark.parametrize("now", ["one", "ONE"], ids=["the same", "edited"])
async def test_what_was_asked_for_and_not_noted_is_found_again_or_else_harms_nothing(
    router: ServedRouter, maker: ByRouter, tmp_path: Path, now: str
) -> None:
    before = await count(router)
    async with router.client() as client:
        dying = Dying(client, Patience(60, lambda _: None))
        with pytest.raises(DiedError) as died:
            await run(settings(tmp_path, "one"), lambda: dying, Heard())
        old = str(died.value)
        assert last(tmp_path) == {}
        outcome, heard = await ran(settings(tmp_path, now), maker)
        await client.wait(old)
    assert (outcome.whole, outcome.tally.done, heard.lines) == (True, 1, {})
    assert (last(tmp_path)[1]["job"] == old) == (now == "one")
    assert json.loads((tmp_path / "out/000001.json").read_text())["request"]["prompt"] == now
    assert await count(router) - before == (1 if now == "one" else 2), (
        "an edited line costs one image more, and no other"
    )
