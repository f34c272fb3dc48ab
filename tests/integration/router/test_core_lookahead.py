"""The second place on a worker: when it is filled, and what becomes of who waits in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from router.contract import JobState
from router.core import open_core
from router.jobs import AttemptEnd
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.core_rig import Rig, brisk, ends, eventually
from tests.stores import request

LONG = Pace(step_s=0.1, heartbeat_s=0.2)


@pytest.fixture(params=[0.0, 0.5])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Rig, float]]:
    """Look-ahead off, and on."""
    async with open_core(replace(brisk(tmp_path), ahead_s=request.param)) as core:
        yield Rig(core, await core.store.put_api_key("default", "0" * 64)), request.param


async def asked(worker: PacedProcess, times: int) -> None:
    async def enough() -> bool:
        return (await worker.ledger()).asked >= times

    await eventually(enough, f"the worker was not asked {times} times")


async def test_never_are_more_than_one_ahead_and_only_if_that_is_wanted(
    either: tuple[Rig, float], a: PacedProcess
) -> None:
    house, ahead_s = either
    await a.pace(Pace(step_s=0.02))
    await house.register("a", a)
    jobs = [await house.submit(request(seed=seed)) for seed in range(12)]
    most = 0

    async def all_ended() -> bool:
        nonlocal most
        most = max(most, house.view("a").running)
        return all([(await house.core.store.job(job.id)).state.ended for job in jobs])  # type: ignore[union-attr]

    await eventually(all_ended, "they never ended")
    assert most == (2 if ahead_s else 1)
    assert await ends(house) == {AttemptEnd.FINISHED: 12}


async def test_a_job_stays_free_for_another_worker_until_just_before_the_end(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(LONG)
    await house.register("a", a)
    first, second = await house.submit(), await house.submit()
    await house.started(first, a)
    await house.register("b", b)
    ended = await house.ended(second)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
    assert (await b.ledger()).fetched == [f"{second.id}.1"]
    assert (await house.ended(first)).attempt == 1


async def test_whoever_waits_behind_a_lost_generation_is_lost_truthfully_and_made_elsewhere(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(replace_tail(LONG))
    await house.register("a", a)
    first, second = await house.submit(), await house.submit()
    await asked(a, 2)
    await a.kill()
    await house.register("b", b)
    for job in (first, second):
        assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert await ends(house) == {AttemptEnd.LOST: 2, AttemptEnd.FINISHED: 2}
    assert sorted((await b.ledger()).fetched) == sorted([f"{first.id}.2", f"{second.id}.2"])


async def test_who_waits_goes_on_when_the_one_before_it_is_cancelled(house: Rig, a: PacedProcess) -> None:
    await a.pace(replace_tail(LONG))
    await house.register("a", a)
    first, second = await house.submit(), await house.submit()
    await asked(a, 2)
    await house.core.service.cancel(house.key, first.id)
    ended = await house.ended(second)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)


async def test_a_cancelled_job_that_waits_is_never_begun(house: Rig, a: PacedProcess) -> None:
    await a.pace(replace_tail(LONG))
    await house.register("a", a)
    first, second = await house.submit(), await house.submit()
    await asked(a, 2)
    await house.core.service.cancel(house.key, second.id)
    assert (await house.ended(second)).state is JobState.CANCELLED
    assert (await house.ended(first)).state is JobState.SUCCEEDED
    assert (await a.ledger()).started == [f"{first.id}.1"]


def replace_tail(pace: Pace) -> Pace:
    """Long after the last step, so that both places are taken for long enough to interfere."""
    return pace.model_copy(update={"tail_s": 3.0})
