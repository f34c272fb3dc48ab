"""Jobs on real workers over real HTTP: the way of an image, and every way to lose one."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from router.artifacts.local import LocalArtifacts
from router.contract import JobEvent, JobState, WorkerHealth
from router.dispatch import Dispatcher
from router.errors import ArtifactError
from router.jobs import AttemptEnd, Image
from router.notices import Notices
from router.queue.embedded import EmbeddedQueue
from router.recent import RecentImages
from router.worker_client import Patience, WorkerClient
from tests.emulators.pace import Fault, Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.emulators.plain_png import png
from tests.integration.router.core_rig import POOL, SLOW, WITHIN_S, Rig, ends, eventually
from tests.stores import SteeredClock, opened_store, request


async def test_a_job_becomes_the_workers_image(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    asked = request("a red fox", seed=7)
    job = await house.ended(await house.submit(asked))
    assert job.state is JobState.SUCCEEDED
    assert await house.core.service.image_bytes(job) == png(asked)
    assert await house.core.service.image_bytes(job) == png(asked), "whoever did not wait reads what was stored"


async def test_who_waits_for_an_image_gets_it_without_its_being_read_back(house: Rig, a: PacedProcess) -> None:
    await a.pace(SLOW)
    await house.register("a", a)
    submitted = await house.submit()
    waiting = asyncio.create_task(house.ended(submitted))

    async def watched() -> bool:
        return house.core.notices.watches(submitted.id)

    await eventually(watched, "somebody waits")
    await a.pace(Pace())
    job = await waiting
    assert job.image is not None
    await house.core.artifacts.remove([job.image.path])
    assert await house.core.service.image_bytes(job) == png(job.request)
    with pytest.raises(ArtifactError, match="is no longer in"):
        await house.core.service.image_bytes(job)


async def test_a_worker_is_credited_with_what_it_finished(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    for _ in range(3):
        await house.ended(await house.submit())

    async def credited() -> bool:
        return (house.view("a").finished, house.view("a").running) == (3, 0)

    await eventually(credited, "its finished jobs were not counted")
    assert [worker.finished for worker in await house.core.store.workers()] == [3]


async def test_a_worker_behind_a_unix_socket_works_as_well(house: Rig, tmp_path: Path) -> None:
    async with paced_worker(socket=tmp_path / "w") as worker:
        await house.register("a", worker)
        assert (await house.ended(await house.submit())).state is JobState.SUCCEEDED


async def test_whoever_watches_sees_the_job_from_its_state_now_to_its_end(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(step_s=0.05))
    await house.register("a", a)
    seen = [(event, progress) async for event, _, progress in house.core.service.watch(await house.submit())]
    events = [event for event, _ in seen]
    steps = [progress.step for event, progress in seen if event is JobEvent.PROGRESS and progress is not None]
    assert events[:2] == [JobEvent.QUEUED, JobEvent.RUNNING]
    assert set(events[2:-1]) == {JobEvent.PROGRESS}
    assert events[-1] is JobEvent.SUCCEEDED
    assert steps == sorted(set(steps))
    assert steps[-1] == 20


async def test_watching_a_job_that_has_ended_tells_its_end_at_once(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    job = await house.ended(await house.submit())
    assert [(event, seen) async for event, seen, _ in house.core.service.watch(job)] == [(JobEvent.SUCCEEDED, job)]


async def test_a_broken_connection_is_made_again_within_the_attempt(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(step_s=0.02, fault=Fault.DROP))
    await house.register("a", a)
    job = await house.ended(await house.submit())
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    ledger = await a.ledger()
    assert (len(ledger.started), ledger.asked) == (1, 2)


async def test_an_image_whose_connection_breaks_is_fetched_again_within_the_attempt(
    house: Rig, a: PacedProcess
) -> None:
    await a.pace(Pace(fault=Fault.DROP_IMAGE))
    await house.register("a", a)
    job = await house.ended(await house.submit())
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert (await a.ledger()).fetched == [f"{job.id}.1"] * 2


async def test_a_job_whose_worker_is_killed_finishes_elsewhere(house: Rig, a: PacedProcess, b: PacedProcess) -> None:
    await a.pace(SLOW)
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    await house.register("b", b)
    await a.kill()
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert await ends(house) == {AttemptEnd.LOST: 1, AttemptEnd.FINISHED: 1}
    await house.believed("a", WorkerHealth.UNREACHABLE)
    assert "worker a" in house.view("a").reason


async def test_a_stream_without_heartbeats_is_a_lost_worker(house: Rig, a: PacedProcess, b: PacedProcess) -> None:
    await a.pace(Pace(fault=Fault.SILENT, step_s=0.1))
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    await house.register("b", b)
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert (await b.ledger()).fetched == [f"{job.id}.2"]


@dataclass(frozen=True)
class StalledArtifacts(LocalArtifacts):
    """Stores nothing until it is let."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    let: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, generation_id: str, data: bytes, media_type: str, sha256: str | None = None) -> Image:
        self.asked.set()
        await self.let.wait()
        return await LocalArtifacts(self.root).put(generation_id, data, media_type, sha256)


async def test_a_driver_that_stalls_until_its_lease_has_run_out_finishes_too_late_and_changes_nothing(
    a: PacedProcess, b: PacedProcess, tmp_path: Path
) -> None:
    ttl_ms, clock, root = 60_000, SteeredClock(), tmp_path / "artifacts"  # so long that no renewal is due
    stalled = StalledArtifacts(root)
    on_a, on_b = (WorkerClient(name, it.url, it.token, Patience()) for name, it in (("a", a), ("b", b)))
    async with opened_store(tmp_path, clock) as store, aclosing(on_a), aclosing(on_b):
        for worker, client in ((a, on_a), (b, on_b)):
            await store.put_worker(client.name, worker.url, worker.token, POOL)
        job = await store.add_job((await store.put_api_key("default", "0" * 64)).id, POOL, request())
        first = await store.lease_next("a", ttl_ms)
        assert first is not None
        late = asyncio.create_task(
            Dispatcher(store, stalled, Notices(), EmbeddedQueue(), ttl_ms, RecentImages(0)).drive(first, on_a)
        )
        await asyncio.wait_for(stalled.asked.wait(), WITHIN_S)
        clock.advance(ttl_ms)
        await store.sweep()
        second = await store.lease_next("b", ttl_ms)
        assert second is not None
        prompt = Dispatcher(store, LocalArtifacts(root), Notices(), EmbeddedQueue(), ttl_ms, RecentImages(0))
        assert (await prompt.drive(second, on_b)).end is AttemptEnd.FINISHED
        ended = await store.job(job.id)
        assert ended is not None
        assert ended.image is not None
        stalled.let.set()
        assert (await late).end is None
        assert await store.job(job.id) == ended
        assert (await store.attempt_counts())[POOL] == {AttemptEnd.EXPIRED: 1, AttemptEnd.FINISHED: 1}
    assert [path for path in root.rglob("*") if path.is_file()] == [root / ended.image.path]


async def test_an_image_that_cannot_be_stored_yet_is_held_and_not_made_again(
    house: Rig, a: PacedProcess, tmp_path: Path
) -> None:
    assert isinstance(house.core.artifacts, LocalArtifacts)
    root, away = house.core.artifacts.root, tmp_path / "away"

    def break_it() -> None:
        root.rename(away)
        root.touch()  # no folder, so nothing can be stored

    def mend_it() -> None:
        root.unlink()
        away.rename(root)

    await house.register("a", a)
    await asyncio.to_thread(break_it)
    with capture_logs() as told:
        job = await house.submit()

        async def failed() -> bool:
            return any(line["event"].startswith("artifact_not_stored") for line in told)

        await eventually(failed, "it could not be stored")
    await asyncio.to_thread(mend_it)
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
    assert (await a.ledger()).finished == [f"{job.id}.1"]
    assert await house.core.service.image_bytes(ended) == png(job.request)


async def test_an_image_that_cannot_be_stored_for_long_is_a_lost_attempt(a: PacedProcess, tmp_path: Path) -> None:
    nowhere, on_a = LocalArtifacts(Path("/dev/null")), WorkerClient("a", a.url, a.token, Patience())
    async with opened_store(tmp_path, SteeredClock()) as store, aclosing(on_a):
        await store.put_worker("a", a.url, a.token, POOL)
        job = await store.add_job((await store.put_api_key("default", "0" * 64)).id, POOL, request())
        lease = await store.lease_next("a", 60_000)
        assert lease is not None
        dispatcher = Dispatcher(
            store, nowhere, Notices(), EmbeddedQueue(), 60_000, RecentImages(0), artifact_pauses_s=(0.01, 0.01)
        )
        outcome = await dispatcher.drive(lease, on_a)
        assert (outcome.end, outcome.unkept) == (AttemptEnd.LOST, True)
        waiting = await store.job(job.id)
        assert waiting is not None
        assert waiting.state is JobState.QUEUED


async def test_a_store_of_images_that_does_not_answer_is_not_waited_for_for_ever(
    a: PacedProcess, tmp_path: Path
) -> None:
    stalled, on_a = StalledArtifacts(tmp_path / "artifacts"), WorkerClient("a", a.url, a.token, Patience())
    async with opened_store(tmp_path, SteeredClock()) as store, aclosing(on_a):
        await store.put_worker("a", a.url, a.token, POOL)
        await store.add_job((await store.put_api_key("default", "0" * 64)).id, POOL, request())
        lease = await store.lease_next("a", 60_000)
        assert lease is not None
        dispatcher = Dispatcher(store, stalled, Notices(), EmbeddedQueue(), 60_000, RecentImages(0), keep_s=0.2)
        async with asyncio.timeout(WITHIN_S):
            assert (await dispatcher.drive(lease, on_a)).unkept


async def test_a_frozen_worker_that_thaws_after_its_attempt_was_lost_changes_nothing(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(Pace(step_s=0.1, fault=Fault.DEAF))
    await house.register("a", a)
    job = await house.submit()
    await house.started(job, a)
    a.freeze()
    await house.register("b", b)
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    a.thaw()

    async def finished_late() -> bool:
        return (await a.ledger()).finished == [f"{job.id}.1"]

    await eventually(finished_late, "the zombie never finished")
    assert await house.core.store.job(job.id) == ended
    assert await house.core.service.image_bytes(ended) == png(job.request)
    await house.believed("a", WorkerHealth.READY)


async def test_a_heartbeat_keeps_a_slow_generation_alive(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(step_s=4.0, heartbeat_s=0.2))  # longer than silence is borne, and than a lease runs
    await house.register("a", a)
    job = await house.ended(await house.submit(request(steps=1)))
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


async def test_an_image_that_is_not_the_announced_one_is_never_committed(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    await a.pace(Pace(fault=Fault.DIGEST, times=1))
    await house.register("a", a)
    job = await house.submit()
    await house.believed("a", WorkerHealth.QUARANTINED)
    await house.register("b", b)
    ended = await house.ended(job)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert await ends(house) == {AttemptEnd.CORRUPT: 1, AttemptEnd.FINISHED: 1}


async def test_a_worker_that_takes_nothing_is_not_asked_in_a_hot_loop(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(fault=Fault.BUSY))
    await house.register("a", a)
    begun = time.monotonic()
    job = await house.submit()

    async def asked_thrice() -> bool:
        return (await a.ledger()).asked >= 3

    await eventually(asked_thrice, "the worker was given up")
    assert time.monotonic() - begun > 1.4, "pauses of 0.5 s and 1 s lie between three tries"
    await a.pace(Pace())
    assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert (await ends(house)).keys() == {AttemptEnd.RETURNED, AttemptEnd.FINISHED}


async def test_a_busy_workers_job_goes_to_one_that_is_free(house: Rig, a: PacedProcess, b: PacedProcess) -> None:
    await a.pace(Pace(fault=Fault.BUSY))
    await house.register("a", a)
    job = await house.submit()

    async def asked() -> bool:
        return (await a.ledger()).asked >= 1

    await eventually(asked, "a was never asked")
    await house.register("b", b)
    assert (await house.ended(job)).state is JobState.SUCCEEDED
    assert len((await b.ledger()).fetched) == 1


async def test_a_zombies_generation_is_let_end_before_the_worker_gets_a_job(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(step_s=0.1, heartbeat_s=0.1))
    async with httpx.AsyncClient(base_url=a.url, headers={"Authorization": f"Bearer {a.token}"}) as http:
        content = request(steps=10).model_dump_json()
        async with http.stream("PUT", "/generations/zombie.1", content=content) as zombie:
            await anext(zombie.aiter_lines())
            await house.register("a", a)
            job = await house.ended(await house.submit(request(steps=1)))
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    ledger = await a.ledger()
    assert ledger.started == ["zombie.1", f"{job.id}.1"]
    assert ledger.finished[0] == "zombie.1"


async def test_a_job_that_crashes_two_workers_fails_and_names_them(
    house: Rig, a: PacedProcess, b: PacedProcess
) -> None:
    for name, worker in (("a", a), ("b", b)):
        await worker.pace(Pace(fault=Fault.CRASH))
        await house.register(name, worker)
    job = await house.ended(await house.submit())
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.type, job.error.detail) == ("engine_error", "crashed 2 times, on a, b; last: told to crash")


async def test_a_crash_of_the_only_worker_is_tried_again(house: Rig, a: PacedProcess) -> None:
    await a.pace(Pace(fault=Fault.CRASH, times=1))
    await house.register("a", a)
    job = await house.ended(await house.submit())
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)


async def test_a_prompt_that_the_worker_refuses_fails_the_job_with_its_words(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    job = await house.ended(await house.submit(request("word " * 3000)))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.type, job.attempt) == ("invalid_request", 1)
    assert "3000 tokens" in job.error.detail
    with pytest.raises(ArtifactError, match="has no image"):
        await house.core.service.image_bytes(job)


async def test_refused_prompts_do_not_count_against_the_worker(house: Rig, a: PacedProcess) -> None:
    await house.register("a", a)
    for _ in range(6):
        await house.ended(await house.submit(request("word " * 3000)))
    await a.pace(Pace(fault=Fault.CRASH, times=1))
    begun = time.monotonic()
    job = await house.ended(await house.submit())
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert time.monotonic() - begun < 5, "the first failure's pause is half a second"
