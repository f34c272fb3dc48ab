"""One registered worker as the router lives with it: what is believed of its health, and its consumer.

Two loops: one asks the worker how it is; the other gives it a job whenever it is ready and has room. A job meets
the worker only then (late binding), never earlier; room for a second one is there just before the first is
predicted to end (`router.places`). What is registered is `router.fleet`'s, what is made of a worker's behaviour
is decided in `router.trust`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic

import structlog

from router.choice import Capability, Spill
from router.contract import WorkerHealth, WorkerView, fingerprint
from router.dispatch import Dispatcher, Outcome
from router.errors import StoreUnavailableError, WorkerError, WorkerUnauthorizedError, WorkerUnreachableError
from router.jobs import FAULTS, AttemptEnd, Cause, Lease
from router.places import Held, Places
from router.probation import Probation
from router.queue import Queue, WakeUp
from router.store import ROUTER, RegisteredWorker, Store
from router.supervise import forever
from router.trust import HEALTH, Belief, belief_of, failures_after, pause_s
from router.worker_client import Event, Patience, WorkerClient
from worker.contract import WorkerState, WorkerStatus

log = structlog.get_logger(__name__)

HEARD_FACTOR = 5
"""So much more rarely is a worker asked how it is while the steps of its generation are heard."""


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
    ahead_s: float = 0.3
    """How long before its predicted end a running generation gets a successor; 0: only after it."""
    probation_s: float = 30.0
    """Until a worker in quarantine is tried with an image that nobody waits for; doubling while that fails."""


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
        spills: Callable[[Member], Awaitable[Sequence[Spill]]],
        *,
        driver: str = ROUTER,
    ) -> None:
        """`spills` is asked before each look at the store: what the worker may take besides its own pool's jobs."""
        self.worker = worker
        self._driver = driver
        self._spills = spills
        self._capability = Capability()
        self._lent = False
        self._store, self._queue, self._dispatcher = store, queue, dispatcher
        self._rhythm, self._now = rhythm, now
        self._client = WorkerClient(worker.name, worker.url, worker.token, patience)
        self._probation = Probation(self._client, rhythm.probation_s)
        self._belief = Belief(WorkerHealth.UNKNOWN, "not asked yet", now())
        self._status: WorkerStatus | None = None
        self._places = Places(rhythm.ahead_s)
        self._casualties: list[Held] = []
        self._usable = asyncio.Event()
        self._look = asyncio.Event()
        self._moved = asyncio.Event()
        self._failures = 0
        self._resume_at = 0.0
        self._heard_at = 0.0
        self._trusted = False
        self._finishing = False
        self._loops: list[asyncio.Task[None]] = []
        self._drives: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether it could make an image now or after the one that it makes."""
        allowed = not self.worker.draining and self.worker.quarantine is None
        return self._belief.health is WorkerHealth.READY and allowed

    @property
    def capability(self) -> Capability | None:
        """What it has said that it can do, if it has."""
        return None if self._capability == Capability() else self._capability

    @property
    def idle(self) -> bool:
        """Whether a job of its pool that came now would be taken at once; not while it asks for another pool's."""
        return self._usable.is_set() and not self._places and not self._lent

    def view(self) -> WorkerView:
        health, reason = self._belief.health, self._belief.reason
        if self.worker.quarantine is not None:
            health, reason = WorkerHealth.QUARANTINED, self._probation.explained(self.worker.quarantine)
        elif self._failures > 1 and health is WorkerHealth.READY:
            reason = f"its last {self._failures} attempts failed; it is tried ever more rarely"
        # As it last was, until it has answered this process.
        known = self._status or self.worker.capability or Capability()
        return WorkerView(
            name=self.worker.name,
            url=self.worker.url,
            pool=self.worker.pool,
            token_fingerprint=fingerprint(self.worker.token),
            health=health,
            reason=reason,
            since=self._belief.since,
            draining=self.worker.draining,
            running=len(self._places),
            finished=self.worker.finished,
            model=known.model,
            tier=known.tier,
            max_pixels=known.max_pixels,
            version=self._status.version if self._status else None,
        )

    def start(self, joined: Iterable[Lease]) -> None:
        """Begin. `joined` are the leases that a router before this one left with the worker: same attempts."""
        name = self.worker.name
        for lease in joined:
            self._begin(lease, None)
        self._loops = [
            asyncio.create_task(forever(f"probe {name}", self._probe)),
            asyncio.create_task(forever(f"consume {name}", self._consume)),
        ]

    async def stop(self) -> list[Lease]:
        """End the loops; returns the leases that were held, whose attempts are not ended by this."""
        left = list(self._places.leases)
        tasks = [*self._loops, *self._drives]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()
        return left

    async def finish(self) -> None:
        """Take no more jobs, and return when those that are held have ended."""
        self._finishing = True
        while self._drives:
            await asyncio.wait(set(self._drives))

    def update(self, worker: RegisteredWorker) -> None:
        """Same worker, told to drain or to go on, put in quarantine or released from it."""
        self.worker = worker
        self._reconsider()
        self._look.set()

    async def _probe(self) -> None:
        interval = self._rhythm.soon_s
        while True:
            asked_at = monotonic()
            try:
                self._status = await self._client.status()
                if self._status.state is WorkerState.READY and not self._trusted:
                    await self._client.check_token()
                    self._trusted = True
                await self._describe(self._status)
            except WorkerError as error:
                self._suspect(error)
            else:
                await self._judge(self._status)
                self._believe(HEALTH[self._status.state], self._status.reason)
                await self._try_out()
            interval = self._rhythm.probe_s if self._usable.is_set() else min(2 * interval, self._rhythm.probe_s)
            interval = await self._until_next_look(interval, asked_at)

    async def _until_next_look(self, interval: float, asked_at: float) -> float:
        """Return when the worker should be asked again how it is; how soon it should be after that if it is not well.

        One whose steps are heard is well. Sixty-four that are asked nevertheless are the half of a router's work.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._look.wait()
                    interval = self._rhythm.soon_s
            looked_for = self._look.is_set()
            self._look.clear()
            now = monotonic()
            heard = self._usable.is_set() and now - self._heard_at < self._rhythm.probe_s
            if looked_for or not heard or now - asked_at >= HEARD_FACTOR * self._rhythm.probe_s:
                return interval

    async def _judge(self, status: WorkerStatus) -> None:
        """Of what was lost with this worker, what its own process took with it when it died.

        It did if another process answers on the same machine. The same process had only lost its way, and on
        another machine everything is new, for which no job can be blamed.
        """
        while self._casualties:
            lost = self._casualties[-1]
            if lost.machine and lost.machine == status.machine and lost.process != status.process:
                detail = f"the process of worker {self.worker.name} ended while it was at work on it"
                await self._dispatcher.blame(lost.lease, detail)
                await self._refresh()
            self._casualties.pop()

    async def _try_out(self) -> None:
        """Let a worker that is in quarantine for its failures show that it can make an image."""
        quarantine = self.worker.quarantine
        if quarantine is None or quarantine.cause is not Cause.FAULTS or self._belief.health is not WorkerHealth.READY:
            return
        if await self._probation.passed(monotonic()):
            released = await self._store.release_worker(self.worker.name)
            log.info("worker_released", worker=self.worker.name, why="its probe generation succeeded")
            self._failures = 0
            if released is not None:
                self.update(released)

    async def _describe(self, status: WorkerStatus) -> None:
        """The store chooses by what the worker can do, so it has to know before the worker counts as ready."""
        said = Capability(status.tier, status.model, status.max_pixels)
        if said != self._capability:
            await self._store.describe_worker(self.worker.name, said)
            self._capability = said

    async def _consume(self) -> None:
        found = True  # who had no room, or found something, looks again at once: its wake-up may be gone
        while True:
            found = await self._room() or found
            wake_up = await self._queue.wait(self.worker.pool, self.worker.name, 0 if found else self._rhythm.idle_s)
            found = False
            try:
                lease = await self._lease()
                if lease is None and wake_up is not None and await self._store.queued(self.worker.pool):
                    # What waits is not for this worker, or it has no room any more.
                    self._queue.pass_on(self.worker.pool, wake_up, self.worker.name)
                    wake_up = None
            except BaseException:  # whatever happens, the wake-up is used up; it is raised again
                if wake_up is not None:
                    wake_up.done()
                raise
            if lease is not None:
                self._begin(lease, wake_up)
                found = True
            elif wake_up is not None:
                wake_up.done()

    async def _lease(self) -> Lease | None:
        if not self._has_room():
            return None
        # Only an idle worker helps out: its second place is for its own pool.
        spills = () if self._places else await self._spills(self)
        self._lent = bool(spills)
        try:
            places = len(self._places) + 1
            return await self._store.lease_next(
                self.worker.name, self._rhythm.lease_ttl_ms, places, spills, driver=self._driver
            )
        finally:
            self._lent = False

    async def _room(self) -> bool:
        """Return when the worker may get a job, or one more; whether that had to be waited for."""
        waited = False
        while not self._has_room():
            waited = True
            self._moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until_room()):
                    await self._moved.wait()
        return waited

    def _has_room(self) -> bool:
        if self._finishing or not self._usable.is_set() or monotonic() < self._resume_at:
            return False
        return self._places.open(monotonic(), second=self._failures == 0)

    def _until_room(self) -> float | None:
        """How long waiting may be of use if nothing happens, in seconds; None: only something can change it."""
        pause = self._resume_at - monotonic()
        if pause > 0:
            return pause
        return self._places.opens_in_s(monotonic()) if self._usable.is_set() else None

    def _begin(self, lease: Lease, wake_up: WakeUp | None) -> None:
        held = self._places.take(lease, self._status)
        task = asyncio.create_task(self._drive(held, wake_up))
        self._drives.add(task)
        task.add_done_callback(self._drives.discard)

    async def _drive(self, held: Held, wake_up: WakeUp | None) -> None:
        """To the attempt's end. What nobody foresaw is told, and the lease runs out."""
        lease = held.lease
        try:
            outcome = await self._dispatcher.drive(lease, self._client, lambda event: self._observe(held, event))
            await self._learn(held, outcome)
        except StoreUnavailableError as error:
            log.error("attempt_left", job=lease.job_id, attempt=lease.attempt, error=str(error))  # noqa: TRY400
        except Exception:  # one attempt's trouble is none of the next one's
            log.exception("attempt_left", job=lease.job_id, attempt=lease.attempt)
        finally:
            self._places.leave(held)
            self._moved.set()
            if wake_up is not None:
                wake_up.done()

    def _observe(self, held: Held, event: Event) -> None:
        self._heard_at = monotonic()
        self._places.observe(held, event, self._heard_at)
        self._moved.set()

    async def _learn(self, held: Held, outcome: Outcome) -> None:
        self._failures = failures_after(outcome, self._failures)
        self._places.ended(held)
        self._resume_at = max(self._resume_at, monotonic() + pause_s(outcome, self._failures))
        if outcome.end is AttemptEnd.FINISHED:
            self.worker = replace(self.worker, finished=self.worker.finished + 1)
        elif outcome.end is not AttemptEnd.CANCELLED:
            if isinstance(outcome.error, WorkerUnreachableError) and held.course is not None:
                self._casualties.append(held)
            self._suspect(outcome.error)
            self._look.set()
        if outcome.end in FAULTS:
            await self._refresh()

    async def _refresh(self) -> None:
        """What the store has made of this worker meanwhile."""
        worker = await self._store.worker(self.worker.name)
        if worker is not None and worker != self.worker:
            if worker.quarantine is not None and self.worker.quarantine is None:
                log.warning("worker_quarantined", worker=worker.name, reason=worker.quarantine.reason)
            self.update(worker)

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
        if self.ready and not self._places.foreign(self._status):
            self._usable.set()
        else:
            self._usable.clear()
        self._moved.set()
