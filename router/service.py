"""What the dialects call: take a job on, look at it, wait for it, watch it, cancel it.

Admission is decided here. A job that was taken on is a committed row, whatever happens to this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from math import ceil

from router.artifacts import Artifacts, AtUrl, InFile
from router.choice import ANY_TERMS, Terms
from router.contract import JobEvent, JobState, Progress
from router.dispatch import Dispatcher
from router.errors import ArtifactError, PoolUnavailableError, QueueFullError
from router.fleet import Fleet
from router.jobs import Image, Job
from router.notices import Notices, Ticks
from router.queue import Queue
from router.store import ApiKey, Store
from worker.contract import GenerationRequest

POOL_RETRY_S = 30
"""After which a client may ask again for a pool without workers: somebody has to register one first."""
MAX_RETRY_S = 120


class JobService:
    def __init__(
        self,
        store: Store,
        queue: Queue,
        notices: Notices,
        artifacts: Artifacts,
        dispatcher: Dispatcher,
        fleet: Fleet,
        *,
        queue_bound: int,
        look_s: float,
    ) -> None:
        """`queue_bound` bounds each pool's queue; `look_s` is how often a waiter asks the store by itself."""
        self._store, self._queue, self._notices = store, queue, notices
        self._artifacts, self._dispatcher, self._fleet = artifacts, dispatcher, fleet
        self._queue_bound = queue_bound
        self._look_s = look_s

    async def submit(self, key: ApiKey, pool: str, request: GenerationRequest, terms: Terms = ANY_TERMS) -> Job:
        """Promise to finish a job. Workers that are loading or lost are waited for; missing ones are not.

        Raises PoolUnavailableError, QueueFullError (the bound may be passed by as many as ask at once),
        StoreUnavailableError.
        """
        if not self._fleet.takes_jobs(pool):
            raise PoolUnavailableError(pool, "no worker is registered that takes new jobs", POOL_RETRY_S)
        queued = await self._store.queued(pool)
        if queued >= self._queue_bound:
            pace = self._fleet.seconds_per_job(pool)
            raise QueueFullError(pool, queued, POOL_RETRY_S if pace is None else min(max(ceil(pace), 1), MAX_RETRY_S))
        job = await self._store.add_job(key.id, pool, request, terms)
        self._queue.announce(pool)
        return job

    async def get(self, key: ApiKey, job_id: str) -> Job | None:
        """The key's own job; another's is None, too."""
        job = await self._store.job(job_id)
        return job if job is not None and job.api_key_id == key.id else None

    async def wait(self, job: Job) -> Job:
        """The job when it has ended."""
        async with self._notices.subscribe(job.id) as ticks:
            latest = await self._look(job)
            while not latest.state.ended:
                latest = (await self._next(latest, ticks))[0]
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
        self._dispatcher.hurry(job_id)
        return cancelled or await self._look(before)

    async def image_place(self, job: Job, lifetime_s: int) -> InFile | AtUrl:
        """Where a client is sent for the job's image. Raises ArtifactError if there is none."""
        return await self._artifacts.place(_image(job), lifetime_s)

    async def image_bytes(self, job: Job) -> bytes:
        """Raises ArtifactError if there is no image."""
        return await self._artifacts.read(_image(job))

    async def _next(self, latest: Job, ticks: Ticks) -> tuple[Job, Progress | None]:
        """The next news of a job; notices may be lost, so the store is asked now and then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._look_s):
                tick = await anext(ticks)
                return tick.job or latest, tick.progress
        return await self._look(latest), self._notices.latest_progress(latest.id)

    async def _look(self, job: Job) -> Job:
        return await self._store.job(job.id) or job


def _image(job: Job) -> Image:
    if job.image is None:
        raise ArtifactError(f"job {job.id} is {job.state}: it has no image")
    return job.image
