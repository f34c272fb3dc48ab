"""One registered worker as the router lives with it: what is believed of its health, and its consumer.

Two loops: one asks the worker how it is; the other gives it a job whenever it is ready and free. A job
meets the worker only then (late binding), never earlier. What is registered is `router.fleet`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic

import structlog

from router.contract import WorkerHealth, WorkerView, fingerprint
from router.dispatch import Dispatcher, Outcome
from router.errors import (
    StoreUnavailableError,
    WorkerError,
    WorkerUnauthorizedError,
    WorkerUnavailableError,
    WorkerUnreachableError,
)
from router.jobs import AttemptEnd, Lease
from router.queue import Queue
from router.store import RegisteredWorker, Store
from router.supervise import forever
from router.worker_client import Patience, WorkerClient
from worker.contract import WorkerState, WorkerStatus

log = structlog.get_logger(__name__)

HEALTH = {
    WorkerState.LOADING: WorkerHealth.LOADING,
    WorkerState.READY: WorkerHealth.READY,
    WorkerState.DRAINING: WorkerHealth.DRAINING,
    WorkerState.BROKEN: WorkerHealth.BROKEN,
}
FAILURES = frozenset({AttemptEnd.RETURNED, AttemptEnd.LOST, AttemptEnd.CRASHED})
"""Ends that speak against the worker. One that refuses a request for good has answered as it should."""
PACE_WEIGHT = 0.2
"""Of the newest job, in the running mean of how long jobs take here."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often things are looked at, in seconds, and how long a lease runs, in milliseconds."""

    lease_ttl_ms: int
    probe_s: float
    """Between two looks at a worker that is well."""
    soon_s: float
    """After a loss, doubling up to `probe_s` while it lasts."""
    idle_s: float
    """An idle worker asks for work this often even if nobody announced any."""


@dataclass(frozen=True, slots=True)
class Belief:
    health: WorkerHealth
    reason: str
    since: datetime


def failures_after(end: AttemptEnd | None, failures: int) -> int:
    """How many attempts in a row have failed for the worker's sake, after one more that ended so.

    A cancelled attempt, and one that was no longer ours to end, tell nothing of the worker.
    """
    if end in FAILURES:
        return failures + 1
    return 0 if end in (AttemptEnd.FINISHED, AttemptEnd.REFUSED) else failures


def pause_s(end: AttemptEnd | None, failures: int) -> float:
    """How long a worker gets no job after an attempt that ended so, the `failures`-th in a row, in seconds.

    Half a second gives the job to whoever else is free; a worker that keeps failing is tried ever more
    rarely, up to four times a minute.
    """
    if end in FAILURES:
        return float(min(0.5 * 2 ** min(failures - 1, 10), 15.0))
    return 0.0


def belief_of(error: WorkerError) -> tuple[WorkerHealth, str] | None:
    """What an error tells of the worker's health; None if nothing (it was busy)."""
    if isinstance(error, WorkerUnavailableError):
        return None
    health = WorkerHealth.UNREACHABLE if isinstance(error, WorkerUnreachableError) else WorkerHealth.BROKEN
    return health, str(error)


class Member:
    """To be started once and stopped once."""

    def __init__(
        self,
        worker: RegisteredWorker,
        store: Store,
        queue: Queue,
        dispatcher: Dispatcher,
        rhythm: Rhythm,
        patience: Patience,
        now: Callable[[], datetime],
    ) -> None:
        self.worker = worker
        self._store, self._queue, self._dispatcher = store, queue, dispatcher
        self._rhythm, self._now = rhythm, now
        self._client = WorkerClient(worker.name, worker.url, worker.token, patience)
        self._belief = Belief(WorkerHealth.UNKNOWN, "not asked yet", now())
        self._status: WorkerStatus | None = None
        self._held: dict[str, Lease] = {}
        self._recent: str | None = None
        self._usable = asyncio.Event()
        self._look = asyncio.Event()
        self._failures = 0
        self._trusted = False
        self._tasks: list[asyncio.Task[None]] = []
        self._joins: list[asyncio.Task[None]] = []
        self.seconds_per_job: float | None = None

    @property
    def ready(self) -> bool:
        """Whether it could make an image now or after the one that it makes."""
        return self._belief.health is WorkerHealth.READY and not self.worker.draining

    def view(self) -> WorkerView:
        return WorkerView(
            name=self.worker.name,
            url=self.worker.url,
            pool=self.worker.pool,
            token_fingerprint=fingerprint(self.worker.token),
            health=self._belief.health,
            reason=self._belief.reason,
            since=self._belief.since,
            draining=self.worker.draining,
            running=len(self._held),
            finished=self.worker.finished,
            model=self._status.model if self._status else None,
            version=self._status.version if self._status else None,
        )

    def start(self, joined: Iterable[Lease]) -> None:
        """Begin. `joined` are the leases that a router before this one left with the worker: same attempts."""
        name = self.worker.name
        self._joins = [asyncio.create_task(self._join(lease)) for lease in joined]
        self._tasks = [
            asyncio.create_task(forever(f"probe {name}", self._probe)),
            asyncio.create_task(forever(f"consume {name}", self._consume)),
            *self._joins,
        ]

    async def stop(self) -> list[Lease]:
        """End the loops; returns the leases that were held, whose attempts are not ended by this."""
        left = list(self._held.values())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
        return left

    def update(self, worker: RegisteredWorker) -> None:
        """Same worker, told to drain or to go on."""
        self.worker = worker
        self._reconsider()

    async def _probe(self) -> None:
        interval = self._rhythm.soon_s
        while True:
            try:
                self._status = await self._client.status()
                if self._status.state is WorkerState.READY and not self._trusted:
                    await self._client.check_token()
                    self._trusted = True
            except WorkerError as error:
                self._suspect(error)
            else:
                self._believe(HEALTH[self._status.state], self._status.reason)
            interval = self._rhythm.probe_s if self._usable.is_set() else min(2 * interval, self._rhythm.probe_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._look.wait()
                    interval = self._rhythm.soon_s
            self._look.clear()

    async def _consume(self) -> None:
        if self._joins:
            await asyncio.wait(self._joins)  # until then it is not free, and a job might find one that is
        while True:
            await self._usable.wait()
            lease = await self._store.lease_next(self.worker.name, self._rhythm.lease_ttl_ms)
            if lease is None:
                await self._queue.wait(self.worker.pool, self._rhythm.idle_s)
                if not self._usable.is_set():
                    self._queue.announce(self.worker.pool)  # the wake-up was for somebody who can
                continue
            self._queue.announce(self.worker.pool)  # there may be more, and others idle
            outcome = await self._drive(lease)
            await asyncio.sleep(pause_s(outcome.end, self._failures))

    async def _join(self, lease: Lease) -> None:
        try:
            await self._drive(lease)
        except StoreUnavailableError as error:
            log.error("lease_not_joined", job=lease.job_id, attempt=lease.attempt, error=str(error))  # noqa: TRY400

    async def _drive(self, lease: Lease) -> Outcome:
        begun = monotonic()
        self._held[lease.generation_id] = lease
        try:
            outcome = await self._dispatcher.drive(lease, self._client)
        finally:
            del self._held[lease.generation_id]
        self._failures = failures_after(outcome.end, self._failures)
        if outcome.end is AttemptEnd.FINISHED:
            self._recent = lease.generation_id
            self.worker = replace(self.worker, finished=self.worker.finished + 1)
            took = monotonic() - begun
            known = self.seconds_per_job
            self.seconds_per_job = took if known is None else known + PACE_WEIGHT * (took - known)
        elif outcome.end is not AttemptEnd.CANCELLED:
            self._suspect(outcome.error)
            self._look.set()
        return outcome

    def _suspect(self, error: WorkerError | None) -> None:
        if isinstance(error, WorkerUnauthorizedError):
            self._trusted = False  # /readyz wants no token, so it would go on to look ready
        belief = None if error is None else belief_of(error)
        if belief is not None:
            self._believe(*belief)

    def _believe(self, health: WorkerHealth, reason: str) -> None:
        if health is not self._belief.health:
            log.info("worker_health", worker=self.worker.name, health=health.value, reason=reason)
            self._belief = Belief(health, reason, self._now())
        else:
            self._belief = replace(self._belief, reason=reason)
        self._reconsider()

    def _reconsider(self) -> None:
        if self.ready and not self._foreign():
            self._usable.set()
        else:
            self._usable.clear()

    def _foreign(self) -> bool:
        """Whether somebody else's generation holds a place: a lost attempt's, most likely. It is let end first."""
        if self._status is None:
            return False
        places = {self._status.running, self._status.accepted} - {None, self._recent}
        return not places <= self._held.keys()
