"""The store is the truth: every promise to a client is a committed row here before it is answered.

`Store` is the seam; `router.store.sql` is the implementation (SQLAlchemy; SQLite in WAL mode, Postgres
later by URL). Lease, renew and finish are each one guarded statement that names the attempt: a late one
changes nothing and says so by returning None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from router.batches import Batches
from router.choice import Capability, Lane, Spill, Terms
from router.contract import JobState, WorkerView
from router.errors import AdmissionError
from router.fronts import Fronts
from router.jobs import AttemptEnd, Image, Job, JobError, Lease, NewJob, Quarantine
from router.limits import NO_LIMITS, KeyLimits, Rate, Share
from router.pace import Service
from router.webhooks import Outbox
from worker.contract import GenerationRequest, Timings

ROUTER = "router"
"""The driver's name where there is but one."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who is asking. The key itself is kept only as its SHA-256."""

    id: str
    name: str
    limits: KeyLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as its operator sees it. Times are milliseconds since the epoch."""

    key: ApiKey
    fingerprint: str
    created_at: int
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class UsedInADay:
    """`day` is a date in UTC, as in 2026-11-24."""

    day: str
    images: int
    pixels: int
    gpu_ms: int


@dataclass(frozen=True, slots=True)
class Repeatable:
    """A request with an Idempotency-Key: `name` is the key that the client chose, `body_sha256` what it asked.

    `waits` if its caller stays on the line for the jobs, so that they may be cancelled when all such have gone.
    """

    name: str
    body_sha256: str
    waits: bool


@dataclass(frozen=True, slots=True)
class Admitted:
    """Jobs that were taken on, or `joined`: an earlier request with the same Idempotency-Key had asked for them."""

    job_ids: Sequence[str]
    joined: bool
    rate: Rate | None


@dataclass(frozen=True, slots=True)
class RegisteredWorker:
    """A worker as the operator registered it. `token` is secret: it is never logged or shown."""

    name: str
    url: str
    token: str
    pool: str
    draining: bool
    finished: int
    quarantine: Quarantine | None = None
    capability: Capability | None = None
    """None until it has said what it can make."""

    def __repr__(self) -> str:
        state = f"draining={self.draining}, quarantine={self.quarantine}"
        return f"RegisteredWorker(name={self.name!r}, url={self.url!r}, pool={self.pool!r}, {state})"


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which of a key's jobs are wanted; None: all. Times are milliseconds since the epoch: from `created_after` on,
    and before `created_before`."""

    state: JobState | None = None
    pool: str | None = None
    batch_id: str | None = None
    created_after: int | None = None
    created_before: int | None = None


class Measure(StrEnum):
    """What is added up: of a pool's jobs how long they waited and took, of a worker how long it worked, of
    `pool/end` how many attempts ended so."""

    WAIT = "wait"
    SERVICE = "service"
    BUSY = "busy"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Tally:
    """Of those that fell into this bucket: how many, and their milliseconds together."""

    of: str
    measure: Measure
    bucket: int
    count: int
    total_ms: int


class Renewal(StrEnum):
    """What a worker's driver learns when it renews its lease."""

    HELD = "held"
    CANCEL = "cancel"  # held, but the owner has asked to cancel the job
    LOST = "lost"  # the attempt is no longer this one's to finish


class Store(Protocol):
    """Every method is one transaction. Times are the database's, in milliseconds."""

    @property
    def in_order(self) -> bool:
        """Whether of two methods that write, the one that was awaited first is done first, in this process: SQLite."""
        ...

    @property
    def outbox(self) -> Outbox:
        """What is to be told by webhook; whatever ends a job puts it there, in the same transaction."""
        ...

    @property
    def batches(self) -> Batches:
        """Files, batches, and what becomes of their lines."""
        ...

    @property
    def fronts(self) -> Fronts: ...

    async def add_job(
        self, api_key_id: str, pool: str, request: GenerationRequest, terms: Terms = ..., webhook: str | None = None
    ) -> Job:
        """Commit a new queued job and return it."""
        ...

    async def add_jobs(self, api_key_id: str, pool: str, wanted: Sequence[NewJob]) -> Sequence[Job]:
        """Commit them all, in their order, or none."""
        ...

    async def admit(
        self,
        key: ApiKey,
        pool: str,
        wanted: Sequence[NewJob],
        pool_bound: int,
        repeatable: Repeatable | None = None,
        refusal: AdmissionError | None = None,
        front: str | None = None,
    ) -> Admitted:
        """Commit them all as new jobs, if the key's limits and the pool's bound on what waits allow it.

        `front` if their caller stays on the line there, and is told nothing before they end: on SQLite a power cut,
        which breaks the caller's connection too, may take them back until then.

        `refusal` is raised, unless the request is a repetition, which is served whatever may be in the way of new ones.
        Raises RateLimitedError, KeyQueueFullError, QueueFullError, IdempotencyError; then nothing has changed.
        """
        ...

    async def leave(self, key: ApiKey, name: str, front: str, *, cancel: bool) -> Sequence[Job]:
        """One caller at `front` waits no more for the jobs of the request that it repeated under `name`.

        With `cancel`, and if it was the last, those that have not started are cancelled, and returned; and the name
        is free again. What has started goes on: the caller may come back for it.
        """
        ...

    async def expect_pool(self, pool: str, for_ms: int) -> None:
        """The pool's machines boot: take jobs on for so long, though no worker is registered yet."""
        ...

    async def pool_expected(self, pool: str) -> bool: ...

    async def jobs(self, job_ids: Sequence[str]) -> Sequence[Job]:
        """Those of them that there are, in this order."""
        ...

    async def listed(self, api_key_id: str, wanted: JobFilter, before: str | None, limit: int) -> Sequence[Job]:
        """The key's own, the newest first, at most `limit`; only those that were made before the job `before`."""
        ...

    async def shares(self, pool: str) -> Mapping[str, Share]:
        """What waits in the pool, by key."""
        ...

    async def running(self, pool: str) -> Share:
        """What runs of the pool's jobs."""
        ...

    async def job(self, job_id: str) -> Job | None: ...

    async def cancel_job(self, job_id: str) -> Job | None:
        """Queued: cancelled now, and returned. Running: marked, and `renew` starts to answer CANCEL. Ended: unchanged.

        None if this call has ended nothing, so that of several callers one learns that it was the one.
        """
        ...

    async def standings(self, job_ids: Sequence[str]) -> Mapping[str, tuple[JobState, int]]:
        """State and attempt of each of these jobs, the unknown left out."""
        ...

    async def lease_next(
        self,
        worker: str,
        ttl_ms: int,
        places: int | None = None,
        spills: Sequence[Spill] = (),
        driver: str = ROUTER,
    ) -> Lease | None:
        """Choose the next job that the worker can make, and give the worker a lease on a new attempt.

        Its own pool's come first, then those that `spills` allow, as long as the workers that have to stay idle hold
        nothing, whoever drives them. Between API keys by turns, within one by
        priority and deadline (`router.choice`). None if nothing waits for it, the worker is unknown, draining or in
        quarantine, or it holds `places` leases already (whoever may have taken them; None: as many as are asked for).
        `driver` names the process that will drive it.
        """
        ...

    async def renew(self, lease: Lease, ttl_ms: int) -> Renewal:
        """Extend the lease if the attempt still is the job's; one that has expired, too, until somebody takes it."""
        ...

    async def finish(self, lease: Lease, image: Image, timings: Timings) -> Job | None:
        """Commit the image if the attempt still is the job's; None if it is not (nothing was changed)."""
        ...

    async def end_attempt(self, lease: Lease, end: AttemptEnd, detail: str) -> Job | None:
        """Close an attempt that made no image and carry out `router.jobs.after`, and `quarantine_after` for its worker.

        None if the lease was lost.
        """
        ...

    async def blame(self, lease: Lease, detail: str) -> Job | None:
        """A lost attempt turns out to have been the death of its worker's process. The job, if that has failed it."""
        ...

    async def sweep(self) -> Sequence[Job]:
        """Return every job with an expired lease to the queue (or cancel it, if that was asked)."""
        ...

    async def shorten_leases(self, ttl_ms: int) -> int:
        """No lease is good for much longer than `ttl_ms`, unless the database's clock was set back since it was given:
        such a one is good for that long from now. Whoever holds it renews it in time, and whoever died lets it run
        out. How many there were."""
        ...

    async def expire(self, limit: int) -> Sequence[Job]:
        """End at most `limit` of the jobs that still wait though their deadline has passed."""
        ...

    async def lanes(self, pool: str) -> Sequence[Lane]:
        """Those in which jobs of the pool wait."""
        ...

    async def give_up(self, pool: str, lane: Lane, over: int, error: JobError, limit: int) -> Sequence[Job]:
        """End at most `limit` of the jobs of batches that wait in the lane and have more pixels than `over`, as failed
        for this reason."""
        ...

    async def take_up(self, driver: str, ttl_ms: int) -> Sequence[Lease]:
        """The driver's leases, good for `ttl_ms` from now, for one that starts again and joins what still runs. One
        that has expired meanwhile, too, unless somebody has taken the job."""
        ...

    async def counts(self) -> Mapping[str, Mapping[JobState, int]]:
        """Jobs by pool and state."""
        ...

    async def attempt_counts(self) -> Mapping[str, Mapping[AttemptEnd, int]]:
        """Attempts that have ended, by pool and end."""
        ...

    async def oldest_waiting_ms(self) -> Mapping[str, int]:
        """For how long the job that waits longest has done so, by pool; pools where none waits are left out."""
        ...

    async def tallies(self) -> Sequence[Tally]: ...

    async def queued(self, pool: str) -> int:
        """Jobs that wait in one pool; cheap however many have ended."""
        ...

    async def recent_services(self, pool: str, limit: int) -> Sequence[Service]:
        """How long the newest `limit` images of the pool took their workers."""
        ...

    async def put_worker(self, name: str, url: str, token: str, pool: str) -> RegisteredWorker:
        """Register or update; a worker that was draining is so no more."""
        ...

    async def workers(self) -> Sequence[RegisteredWorker]: ...

    async def worker(self, name: str) -> RegisteredWorker | None: ...

    async def release_worker(self, name: str) -> RegisteredWorker | None:
        """End its quarantine, if it is in one; what it did before counts no more."""
        ...

    async def describe_worker(self, name: str, capability: Capability) -> None:
        """Remember what the worker says that it can do; jobs that want more are not given to it."""
        ...

    async def report(self, driver: str, views: Sequence[WorkerView], keep_ms: int) -> None:
        """What this driver believes of its workers now, in place of what it said before; what no driver has said
        again for `keep_ms` is forgotten."""
        ...

    async def reports(self, within_ms: int) -> Sequence[WorkerView]:
        """What the drivers of the last `within_ms` believe of their workers; several may have one worker."""
        ...

    async def drain_worker(self, name: str) -> RegisteredWorker | None: ...

    async def remove_worker(self, name: str) -> None:
        """Gone is success. Its leases run out by themselves or are ended by their driver."""
        ...

    async def put_api_key(self, name: str, key_sha256: str) -> ApiKey:
        """Create the key or replace the hash of the one with this name."""
        ...

    async def create_api_key(self, name: str, key_sha256: str, limits: KeyLimits) -> KeyRecord:
        """Raises KeyExistsError, also if the one with this name is revoked."""
        ...

    async def api_keys(self) -> Sequence[KeyRecord]: ...

    async def revoke_api_key(self, name: str) -> KeyRecord | None:
        """From now on nobody is let in with it. What was promised is kept."""
        ...

    async def limit_api_key(self, name: str, limits: KeyLimits) -> KeyRecord | None: ...

    async def used(self, name: str, since: str) -> Sequence[UsedInADay] | None:
        """What a key has used by day, from the day `since` (2026-11-24) on; None if there is no such key."""
        ...

    async def api_key(self, key_sha256: str) -> ApiKey | None: ...

    async def fact(self, name: str, proposed: str | None = None) -> str | None:
        """What is on record under this name; `proposed` goes on record if nothing is yet."""
        ...

    async def forget_jobs(self, older_ms: int, limit: int) -> int:
        """Forget at most `limit` of the jobs that ended so many milliseconds ago, or earlier; how many it were."""
        ...

    async def forget_repetitions(self, older_ms: int) -> None:
        """Forget which requests came under which Idempotency-Key so long ago; their jobs stay."""
        ...

    async def named_images(self, paths: Sequence[str]) -> frozenset[str]:
        """Those of the images that a job names."""
        ...

    async def ping(self) -> None:
        """Raise if the database does not answer."""
        ...

    async def check_writes(self) -> None:
        """Raise if the database takes no write: its disk is full, it may only be read. Leaves nothing behind."""
        ...

    async def close(self) -> None: ...
