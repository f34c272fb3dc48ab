"""What the dialects call: take a job on, look at it, wait for it, watch it, cancel it.

Admission is decided here. A job that was taken on is a committed row, whatever happens to this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial

from router.admission import Admission
from router.artifacts import Artifacts, AtUrl, InFile
from router.choice import ANY_TERMS, Terms, pixels_of
from router.contract import JobEvent, JobState, Progress
from router.errors import ArtifactError
from router.fleet import Fleet
from router.jobs import Image, Job, NewJob
from router.notices import Notices, Ticks
from router.queue import Queue
from router.recent import RecentImages
from router.store import Admitted, ApiKey, Repeatable, Store
from worker.contract import GenerationRequest

BOOT_LOOK_S = 5.0
"""Between two looks at whether a pool has a ready worker."""


class JobService:
    def __init__(
        self,
        store: Store,
        queue: Queue,
        notices: Notices,
        artifacts: Artifacts,
        fleet: Fleet,
        admission: Admission,
        recent: RecentImages,
        front: str,
    ) -> None:
        self._store, self._queue, self._notices = store, queue, notices
        self._artifacts, self._fleet = artifacts, fleet
        self._admission, self._recent, self._front = admission, recent, front

    async def submit(
        self,
        key: ApiKey,
        pool: str,
        request: GenerationRequest,
        terms: Terms = ANY_TERMS,
        webhook: str | None = None,
    ) -> Job:
        """Promise to finish one job. Raises as `submit_all` does."""
        submitted = await self.submit_all(key, pool, [NewJob(request, terms, webhook)])
        return (await self._store.jobs(submitted.job_ids))[0]

    async def submit_all(
        self,
        key: ApiKey,
        pool: str,
        wanted: Sequence[NewJob],
        repeatable: Repeatable | None = None,
        *,
        waits: bool = False,
    ) -> Admitted:
        """Promise to finish all of `wanted`, or none. `waits` if the caller stays on the line for them.

        Workers that are loading or lost are waited for; missing ones are not, nor ones that could make this, unless the
        pool expects more. Raises
        AdmissionError, PoolForbiddenError, IdempotencyError, StoreUnavailableError.
        """
        announce = partial(self._queue.announce, pool, len(wanted))
        return await self._admission.admit(key, pool, wanted, repeatable, announce, self._front if waits else None)

    def announce(self, pool: str, jobs: int) -> None:
        """So many jobs were added to the pool otherwise than here."""
        self._queue.announce(pool, jobs)

    def bound_of(self, pool: str) -> int:
        """How many jobs may wait in the pool."""
        return self._admission.bounds.queue_of(pool)

    def publish(self, job: Job) -> None:
        """The job was changed otherwise than here."""
        self._notices.publish(job)

    def check_pool(self, key: ApiKey, pool: str) -> None:
        """Raises PoolForbiddenError if the key may not use the pool."""
        self._admission.check_pool(key, pool)

    async def check_pool_takes(self, pool: str) -> None:
        """Raises PoolUnavailableError if nobody is registered, or expected, who could make anything there."""
        await self._admission.check_takes(pool)

    async def all_of(self, job_ids: Sequence[str]) -> Sequence[Job]:
        return await self._store.jobs(job_ids)

    async def leave(self, key: ApiKey, repeatable: Repeatable, *, cancel: bool) -> None:
        """One who waited for a repeatable request's jobs has gone. With `cancel`, what has not started and nobody
        else waits for is cancelled."""
        for cancelled in await self._store.leave(key, repeatable.name, self._front, cancel=cancel):
            self._notices.publish(cancelled)

    async def not_booted(self, pool: str, wanted: Sequence[NewJob]) -> None:
        """Return when no worker of the pool that can make them all has been ready for as long as a request is held."""
        left_s = self._admission.bounds.boot_s
        kinds = {(pixels_of(new.request), new.terms.tier, new.terms.model) for new in wanted}
        while left_s > 0:
            await asyncio.sleep(min(BOOT_LOOK_S, left_s))
            ready = all(self._fleet.ready_for(pool, *kind) for kind in kinds)
            left_s = self._admission.bounds.boot_s if ready else left_s - BOOT_LOOK_S

    async def get(self, key: ApiKey, job_id: str) -> Job | None:
        """The key's own job; another's is None, too."""
        job = await self._store.job(job_id)
        return job if job is not None and job.api_key_id == key.id else None

    async def wait(self, job_id: str, *, fresh: bool = False) -> Job:
        """The job, which was taken on, when it has ended. `fresh` if that was just now: then its first news is still to
        come, unless others have had it, and it is not looked up in the very moment when a worker is to have it."""
        async with self._notices.subscribe(job_id) as ticks:
            first = fresh and not self._notices.told(job_id)
            latest = None if first else (await self._store.jobs([job_id]))[0]
            while latest is None or not latest.state.ended:
                latest = (await anext(ticks)).job or latest
            return latest

    async def watch(self, job: Job) -> AsyncGenerator[tuple[JobEvent, Job, Progress | None]]:
        """What the job is now, and then every change, to its end. Steps may be skipped, the end never.

        To be closed by whoever stops early (contextlib.aclosing).
        """
        async with self._notices.subscribe(job.id) as ticks:
            seen: tuple[JobState, int, Progress | None] | None = None
            latest, progress = await self._look(job), self._notices.latest_progress(job.id)
            while True:
                if seen is None or (latest.state, latest.attempt) != seen[:2]:
                    yield JobEvent(latest.state.value), latest, progress
                elif progress is not None and progress != seen[2]:
                    yield JobEvent.PROGRESS, latest, progress
                seen = latest.state, latest.attempt, progress
                if latest.state.ended:
                    return
                latest, progress = await self._next(latest, ticks)

    async def cancel(self, key: ApiKey, job_id: str) -> Job | None:
        """Cancel the key's own job: at once if it waits, between two steps if it runs. Ended ones stay as they are."""
        before = await self.get(key, job_id)
        if before is None:
            return None
        cancelled = await self._store.cancel_job(job_id)
        if cancelled is not None:
            self._notices.publish(cancelled)
        else:
            self._notices.ask(job_id)
        return cancelled or await self._look(before)

    async def image_place(self, job: Job, lifetime_s: int) -> InFile | AtUrl:
        """Where a client is sent for the job's image. Raises ArtifactError if there is none."""
        return await self._artifacts.place(_image(job), lifetime_s)

    async def image_bytes(self, job: Job) -> bytes:
        """Raises ArtifactError if there is no image."""
        image = _image(job)
        return self._recent.take(image) or await self._artifacts.read(image)

    async def _next(self, latest: Job, ticks: Ticks) -> tuple[Job, Progress | None]:
        """The next news of a job. Notices may be lost; what was is found by `router.notices.keep_looking`."""
        tick = await anext(ticks)
        return tick.job or latest, tick.progress

    async def _look(self, job: Job) -> Job:
        return await self._store.job(job.id) or job


def _image(job: Job) -> Image:
    if job.image is None:
        raise ArtifactError(f"job {job.id} is {job.state}: it has no image")
    return job.image
