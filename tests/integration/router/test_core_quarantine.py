"""Workers that are not to be trusted, and jobs that are not: who is the suspect, and how it is told."""

from __future__ import annotations

from router.contract import JobState, WorkerHealth
from router.jobs import AttemptEnd
from tests.emulators.pace import Fault, Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.core_rig import Rig, ends, eventually

SLOW_S = 0.1


async def test_a_worker_whose_image_was_damaged_gets_no_job_until_the_operator_releases_it(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(Pace(fault=Fault.DIGEST, times=1))
    await house.register("a", a)
    job = await house.submit()
    await house.believed("a", WorkerHealth.QUARANTINED)
    assert "the operator alone releases it" in house.view("a").reason
    await house.register("b", b)
    for waiting in [job, *[await house.submit() for _ in range(5)]]:
        assert (await house.ended(waiting)).state is JobState.SUCCEEDED
    assert len((await a.ledger()).started) == 1, "nobody tried it again"
    await house.core.fleet.remove("b")
    waiting = await house.submit()
    view = await house.core.fleet.release("a")
    assert view is not None
    assert view.health is WorkerHealth.READY
    assert (await house.ended(waiting)).state is JobState.SUCCEEDED


async def test_a_worker_on_which_two_different_jobs_crash_is_released_by_an_image_that_it_makes_well(
    house: Rig, a: PacedProcess
) -> None:
    await a.pace(Pace(fault=Fault.CRASH))
    await house.register("a", a)
    jobs = [await house.submit(), await house.submit()]
    await house.believed("a", WorkerHealth.QUARANTINED)
    reason = house.view("a").reason
    assert "failed on it in a row" in reason
    assert "an image that nobody waits for" in reason

    async def failed_a_trial() -> bool:
        return "its last trial failed: told to crash" in house.view("a").reason

    await eventually(failed_a_trial, "it was never tried, or its failure not told")
    await a.pace(Pace())
    for job in jobs:
        assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert house.view("a").health is WorkerHealth.READY
    trials = [name for name in (await a.ledger()).finished if name.startswith("trial_")]
    assert len(trials) == 1


async def test_a_quarantine_outlives_the_router_and_the_same_registration(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(Pace(fault=Fault.DIGEST, times=1))
    await house.register("a", a)
    await house.submit()
    await house.believed("a", WorkerHealth.QUARANTINED)
    await house.register("a", a)
    assert house.view("a").health is WorkerHealth.QUARANTINED
    await house.register("a", b)  # another worker under the same name
    await house.believed("a", WorkerHealth.READY)


async def test_a_job_under_which_the_processes_of_two_workers_end_is_the_suspect(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    for worker in (a, b):
        await worker.pace(Pace(step_s=0.02, fault=Fault.DIE))
    await house.register("a", a)
    job = await house.submit()
    for name, worker, times in (("a", a, 1), ("b", b, 2)):
        await house.register(name, worker)
        await gone(worker)
        await house.core.fleet.drain(name)  # so that the job waits for the other
        await worker.begin_again()
        await blamed(house, times)
    ended = await house.ended(job)
    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert ended.error.type == "engine_error"
    assert ended.error.detail == (
        "crashed 2 times, on a, b; last: the process of worker b ended while it was at work on it"
    )


async def test_a_worker_that_comes_back_on_another_machine_counts_against_no_job(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    for worker in (a, b):
        await worker.pace(Pace(step_s=0.02, fault=Fault.DIE))
    await house.register("a", a)
    job = await house.submit()
    for number, worker in enumerate((a, b)):
        await gone(worker)
        if worker is a:
            await house.register("b", b)
        else:
            await worker.begin_again(machine=f"machine-{number + 2}")
    assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert (await ends(house)).keys() == {AttemptEnd.LOST, AttemptEnd.FINISHED}


async def test_the_job_that_only_waited_behind_the_one_that_killed_a_worker_is_no_suspect(
    house: Rig, a: PacedProcess
) -> None:
    await a.pace(Pace(step_s=SLOW_S, tail_s=0.2))
    await house.register("a", a)
    first, second = await house.submit(), await house.submit()

    async def both_there() -> bool:
        return (await a.ledger()).asked == 2

    await eventually(both_there, "the second place never opened")
    await a.begin_again()
    for job in (first, second):
        assert (await house.ended(job)).state is JobState.SUCCEEDED
    found = {ended: count for ended, count in (await ends(house)).items() if ended is not AttemptEnd.FINISHED}
    assert found in ({AttemptEnd.DIED: 1, AttemptEnd.LOST: 1}, {AttemptEnd.LOST: 1}, {AttemptEnd.DIED: 1}), (
        "the one that ran is dead, unless it had just ended"
    )


async def test_a_worker_of_another_contract_gets_no_job_and_says_why(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(Pace(contract="2"))
    await house.register("a", a)
    await house.believed("a", WorkerHealth.BROKEN)
    assert house.view("a").reason == (
        "worker a: speaks version 2 of the worker contract, this router version 1; deploy both from one release"
    )
    await house.register("b", b)
    assert (await house.ended(await house.submit())).state is JobState.SUCCEEDED
    assert (await a.ledger()).asked == 0


async def gone(worker: PacedProcess) -> None:
    async def ended() -> bool:
        return worker.process.returncode is not None

    await eventually(ended, "the worker never died")


async def blamed(house: Rig, times: int) -> None:
    async def known() -> bool:
        return (await ends(house)).get(AttemptEnd.DIED) == times

    await eventually(known, "the death was never noticed")
