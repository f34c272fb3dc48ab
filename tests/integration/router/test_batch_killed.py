"""`letterpress batch`, killed at random moments: no line is lost, none is made twice."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from router.contract import BATCH
from tests.drawing import drawn
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.batching import Batch, door, prompts
from tests.integration.router.served import served_router

SMALL = ("--size", "256x256", "--steps", "2")


@pytest.fixture
async def fleet() -> AsyncIterator[list[PacedProcess]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(paced_worker(Pace(step_s=0.01))) for _ in range(2)]


async def made_by(fleet: list[PacedProcess]) -> list[str]:
    return [name for worker in fleet for name in (await worker.ledger()).finished]


async def killed_until_done(batch: Batch, lines: int, kills: int, draw: random.Random) -> None:
    died = 0
    while died < kills:
        left = lines - sum(entry["state"] == "succeeded" for entry in batch.entries())
        assert left, f"it was done before it was killed for the {died + 1}th time"
        # Two entries a line where a router is asked, one where a worker is. The half: some come before the kill does.
        died += await batch.run_killed(after=draw.randint(0, max(1, left // (2 * (kills - died)))))
    code, said = await batch.run()
    assert code == 0, said
    batch.assert_whole(lines)


@pytest.mark.parametrize(
    ("lines", "kills"), [(60, 4), pytest.param(2000, 10, marks=pytest.mark.soak)], ids=["sixty", "two-thousand"]
)
async def test_a_batch_at_a_router_that_is_killed_goes_on_and_makes_no_image_twice(
    fleet: list[PacedProcess], tmp_path: Path, lines: int, kills: int
) -> None:
    async with served_router() as router, door(router) as url:
        for number, worker in enumerate(fleet):
            await router.use(f"w-{number}", worker, BATCH)
        batch = Batch(prompts(tmp_path / "prompts.txt", lines), tmp_path / "out", ("--url", url, *SMALL))
        await killed_until_done(batch, lines, kills, drawn())
        async with router.admin() as admin:
            (pool,) = await admin.pools()
        assert (pool.succeeded, pool.queued + pool.running + pool.failed + pool.cancelled) == (lines, 0)
        assert len(await made_by(fleet)) == lines


@pytest.mark.parametrize(
    ("lines", "kills"), [(40, 4), pytest.param(2000, 10, marks=pytest.mark.soak)], ids=["forty", "two-thousand"]
)
async def test_a_batch_straight_at_a_worker_that_is_killed_goes_on_and_makes_no_image_twice(
    fleet: list[PacedProcess], tmp_path: Path, lines: int, kills: int
) -> None:
    token = tmp_path / "token"
    token.write_text(fleet[0].token)
    words = ("--worker", fleet[0].url, "--token-file", str(token), *SMALL)
    batch = Batch(prompts(tmp_path / "prompts.txt", lines), tmp_path / "out", words)
    await killed_until_done(batch, lines, kills, drawn())
    assert len(await made_by(fleet)) == lines
