"""The hub between what happens to jobs and who in this process watches them.

A notice says that something is new, and carries the newest; it is no log. Subscribers that are slow miss
steps between, never the last state, and hold nobody up. What happens in another process is not heard
here: whoever must not miss it looks at the store now and then (`router.service`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from router.contract import JobState, Progress
from router.jobs import Job


@dataclass(frozen=True, slots=True)
class Tick:
    """The newest that is known: `job` is None until something was published since the subscription."""

    job: Job | None
    progress: Progress | None


class Ticks:
    """One subscriber's place. Iterating waits until there is something newer than the last tick; it never ends."""

    def __init__(self, progress: Progress | None) -> None:
        self._latest = Tick(None, progress)
        self._news = asyncio.Event()

    def put(self, tick: Tick) -> None:
        self._latest = Tick(tick.job or self._latest.job, tick.progress)
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tick:
        """May be cancelled (by a timeout) and called again; nothing is lost by that."""
        await self._news.wait()
        self._news.clear()
        return self._latest


class Notices:
    """Memory is bounded by what runs and who watches: nothing is kept of a job that does neither."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[Ticks]] = {}
        self._progress: dict[str, Progress] = {}
        self._listeners: list[Callable[[Job], None]] = []

    def listen(self, listener: Callable[[Job], None]) -> None:
        """Call `listener` for every job that is published, from now on. It must be quick, and not raise."""
        self._listeners.append(listener)

    def publish(self, job: Job) -> None:
        """This process has changed `job` to this: to be called once a change, by whoever made it."""
        self.show(job)
        for listener in self._listeners:
            listener(job)

    def show(self, job: Job) -> None:
        """Subscribers learn what `job` is now, whoever made it so. Progress of attempts that
        are no more is forgotten."""
        self.forget(job.id, job.attempt - 1 if job.state is JobState.RUNNING else job.attempt)
        self._tell(job.id, Tick(job, self.latest_progress(job.id)))

    def progress(self, job_id: str, progress: Progress) -> None:
        """One more step is done. Steps of an attempt older than one already seen are not news."""
        known = self._progress.get(job_id)
        if known is None or (known.attempt, known.step) < (progress.attempt, progress.step):
            self._progress[job_id] = progress
            self._tell(job_id, Tick(None, progress))

    def latest_progress(self, job_id: str) -> Progress | None:
        return self._progress.get(job_id)

    def forget(self, job_id: str, attempt: int) -> None:
        """No more steps will come of this attempt and those before it."""
        known = self._progress.get(job_id)
        if known is not None and known.attempt <= attempt:
            del self._progress[job_id]

    @asynccontextmanager
    async def subscribe(self, job_id: str) -> AsyncIterator[Ticks]:
        ticks = Ticks(self.latest_progress(job_id))
        self._subscribers.setdefault(job_id, set()).add(ticks)
        try:
            yield ticks
        finally:
            self._subscribers[job_id].discard(ticks)
            if not self._subscribers[job_id]:
                del self._subscribers[job_id]

    def _tell(self, job_id: str, tick: Tick) -> None:
        for ticks in self._subscribers.get(job_id, ()):
            ticks.put(tick)
