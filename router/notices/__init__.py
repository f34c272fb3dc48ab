"""The hub between what happens to jobs and who in this process watches them.

A notice says that something is new, and carries the newest; it is no log. Subscribers that are slow miss
steps between, never the last state, and hold nobody up. What happens in another process is not heard
here, unless the two are joined (`router.notices.redis`), and even then it may be missed: so what is watched is
looked up in the store now and then (`keep_looking`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from router.contract import JobState, Progress
from router.jobs import Job
from router.store import Store

Standing = tuple[JobState, int]
"""A job's state and attempt: what a watcher must not miss."""
PROGRESS_MAX = 10_000
"""Far more than can run at once."""
LOOKED_UP = 500
"""Jobs in one question to the store."""


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
        self._told: dict[str, Standing] = {}
        self._progress: dict[str, Progress] = {}
        self._listeners: list[Callable[[Job], None]] = []
        self._askers: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[Job], None]) -> None:
        """Call `listener` for every job that is published, from now on. It must be quick, and not raise."""
        self._listeners.append(listener)

    def publish(self, job: Job) -> None:
        """This process has changed `job` to this: to be called once a change, by whoever made it."""
        self.show(job)
        for listener in self._listeners:
            listener(job)

    def show(self, job: Job) -> None:
        """Whoever watches, here or elsewhere, learns what `job` is now, whoever made it so."""
        self.found(job)

    def found(self, job: Job) -> None:
        """Who watches here learns what `job` is now. Progress of attempts that are no more is forgotten."""
        if job.id in self._subscribers:
            state, attempt = self._told.get(job.id, (JobState.QUEUED, 0))
            if state.ended or job.attempt < attempt:
                return  # it was read before, and comes late
            self._told[job.id] = job.state, job.attempt
        self.over(job.id, job.state, job.attempt)
        self._tell(job.id, Tick(job, self.latest_progress(job.id)))

    def progress(self, job_id: str, progress: Progress) -> None:
        """One more step is done. Steps of an attempt older than one already seen are not news."""
        known = self._progress.get(job_id)
        if known is None or (known.attempt, known.step) < (progress.attempt, progress.step):
            self._progress[job_id] = progress
            if len(self._progress) > PROGRESS_MAX:  # the ends of some in other processes were not heard
                del self._progress[next(iter(self._progress))]
            self._tell(job_id, Tick(None, progress))

    def ask(self, job_id: str) -> None:
        """The job's owner wants something of whoever drives it: to look at once, not at the next renewal."""
        for asker in self._askers:
            asker(job_id)

    def on_ask(self, asker: Callable[[str], None]) -> None:
        self._askers.append(asker)

    def watches(self, job_id: str) -> bool:
        return job_id in self._subscribers

    def told(self, job_id: str) -> bool:
        """Whether those who watch the job here have had news of it, which who comes now has missed."""
        return job_id in self._told

    def watched(self) -> list[str]:
        """The jobs that somebody watches here."""
        return list(self._subscribers)

    def news(self, standings: Mapping[str, Standing]) -> list[str]:
        """Of these jobs, the watched ones whose watchers have not been told of that standing."""
        return [job_id for job_id, now in standings.items() if self.watches(job_id) and self._told.get(job_id) != now]

    def latest_progress(self, job_id: str) -> Progress | None:
        return self._progress.get(job_id)

    def over(self, job_id: str, state: JobState, attempt: int) -> None:
        """The job is this now: attempts that are no more make no more steps."""
        self.forget(job_id, attempt - 1 if state is JobState.RUNNING else attempt)

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
                self._told.pop(job_id, None)

    def _tell(self, job_id: str, tick: Tick) -> None:
        for ticks in self._subscribers.get(job_id, ()):
            ticks.put(tick)


async def look(notices: Notices, store: Store) -> None:
    """Once: whatever is watched here and has changed without a notice is told now."""
    watched = notices.watched()
    for begin in range(0, len(watched), LOOKED_UP):
        standings = await store.standings(watched[begin : begin + LOOKED_UP])
        for job_id in notices.news(standings):
            job = await store.job(job_id)
            if job is not None:
                notices.found(job)


async def keep_looking(notices: Notices, store: Store, every_s: float) -> None:
    """One look for all who watch: two thousand that each looked for themselves would be the store's whole work."""
    while True:
        await asyncio.sleep(every_s)
        await look(notices, store)
