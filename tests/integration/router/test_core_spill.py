"""An idle worker helps another pool out where a rule allows it, with short jobs only, and never all workers at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from router.choice import ANY_TERMS
from router.contract import BATCH, JobState
from router.core import open_core
from router.jobs import Job
from router.spill import SpillRule
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.core_rig import POOL, Rig, brisk, eventually
from tests.stores import request

RULE = SpillRule(giver=POOL, taker=BATCH, longest_s=2.0, idle_kept=1)


@pytest.fixture
async def lent(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_core(replace(brisk(tmp_path), spill_rules=(RULE,))) as core:
        yield Rig(core, await core.store.put_api_key("default", "0" * 64))


async def batched(house: Rig, steps: int) -> Job:
    """A job of the batch pool, which has no workers here."""
    return await house.core.store.add_job(house.key.id, BATCH, request(steps=steps), ANY_TERMS)


async def test_the_last_idle_worker_stays_with_its_pool(lent: Rig, a: PacedProcess) -> None:
    await lent.register("a", a)
    await lent.ended(await lent.submit(request(steps=4)))
    waiting = await batched(lent, 4)
    await lent.ended(await lent.submit(request(steps=4)))
    found = await lent.core.store.job(waiting.id)
    assert found is not None
    assert found.state is JobState.QUEUED


async def test_an_idle_worker_takes_what_is_short_and_leaves_what_is_long(
    lent: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    for name, worker in (("a", a), ("b", b)):
        await worker.pace(Pace(step_s=0.05))
        await lent.register(name, worker)
    long = await batched(lent, 100)
    short = [await batched(lent, 4) for _ in range(6)]
    for _ in range(2):
        await lent.ended(await lent.submit(request(steps=4)))  # from which the pace is learnt
    for job in short:
        assert (await lent.ended(job)).state is JobState.SUCCEEDED
    left = await lent.core.store.job(long.id)
    assert left is not None
    assert left.state is JobState.QUEUED

    async def idle_again() -> bool:
        return not any(view.running for view in lent.core.fleet.views())

    await eventually(idle_again, "the workers are with their pool again")
