"""The job, its attempts and leases as plain values, and what becomes of a job after an attempt.

Nothing here waits, stores or looks at a clock. Times are integer milliseconds since the Unix epoch,
by the database's clock (`router.store`), so that several routers agree on when a lease ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from router.choice import ANY_TERMS, Terms
from router.contract import JobState
from worker.contract import FailureType, GenerationRequest

MAX_CRASHED_WORKERS = 2
"""A job that ends in an engine error on this many different workers is itself the suspect, and fails."""
DEADLINE_PASSED = "deadline_passed"
"""The type of an expired job's error."""
PATIENCE_MS = 24 * 3_600_000
"""A job without a deadline goes before those of its key that are due later than this after it came."""
MAX_CRASHES = 3
"""So it is after this many engine errors on any: a pool of one worker must not try for ever."""


@dataclass(frozen=True, slots=True)
class Image:
    """A stored artifact. `path` is relative to the artifact store's root.

    `suspicion` says why it looks like the picture of something that the weights refused; mostly empty.
    """

    path: str
    sha256: str
    bytes: int
    media_type: str
    suspicion: str = ""


@dataclass(frozen=True, slots=True)
class JobError:
    type: str
    detail: str


@dataclass(frozen=True, slots=True)
class Place:
    """Which line of which batch a job is of."""

    batch_id: str
    line: int


@dataclass(frozen=True, slots=True)
class NewJob:
    """An image to be made, before anybody has promised it. Its seed is drawn already."""

    request: GenerationRequest
    terms: Terms = ANY_TERMS
    webhook: str | None = None
    """Where to tell that it has ended."""
    retry_of: str | None = None
    """The job that this one is another chance of."""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One image that the router has promised to finish. `started_at` is when its first attempt began; `gpu_ms` is what
    a GPU worked in the attempt that made the image."""

    id: str
    api_key_id: str
    pool: str
    state: JobState
    request: GenerationRequest
    attempt: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    image: Image | None
    error: JobError | None
    terms: Terms = ANY_TERMS
    webhook: str | None = None
    retry_of: str | None = None
    place: Place | None = None
    gpu_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to finish one attempt at a job, until `expires_at`. `job` is as it was when the worker
    got it: running, in this attempt."""

    job: Job
    worker: str
    expires_at: int

    @property
    def job_id(self) -> str:
        return self.job.id

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def pool(self) -> str:
        return self.job.pool

    @property
    def request(self) -> GenerationRequest:
        return self.job.request

    @property
    def generation_id(self) -> str:
        return f"{self.job_id}.{self.attempt}"


class AttemptEnd(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    LOST = "lost"  # the worker, its machine or the way to it went away
    EXPIRED = "expired"  # nobody renewed the lease
    CRASHED = "crashed"  # the engine failed on it
    DIED = "died"  # the worker's process ended under it while its machine stayed; known when another process answers
    CORRUPT = "corrupt"  # the image is not the one that the worker announced
    REFUSED = "refused"  # the worker says that the request can never work
    RETURNED = "returned"  # the worker could not take it now: busy, loading, draining, no memory for this size
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Requeue:
    """Back to the queue, at its old place."""


@dataclass(frozen=True, slots=True)
class Fail:
    error: JobError


@dataclass(frozen=True, slots=True)
class Cancel:
    pass


def after(end: AttemptEnd, detail: str, crashed_on: Sequence[str]) -> Requeue | Fail | Cancel:
    """What becomes of a job whose attempt ended without an image.

    `crashed_on` names a worker for each attempt at the job that crashed or under which the worker died, this one
    included. Loss of infrastructure never counts against the job; crashes do. (That a lost attempt was a death may
    turn out only when its job is at work elsewhere; the next loss is then one too many.)
    """
    match end:
        case AttemptEnd.EXPIRED | AttemptEnd.RETURNED | AttemptEnd.CORRUPT:
            return Requeue()
        case AttemptEnd.LOST:
            return _suspect(detail, crashed_on) or Requeue()
        case AttemptEnd.CANCELLED:
            return Cancel()
        case AttemptEnd.REFUSED:
            return Fail(JobError(FailureType.INVALID_REQUEST, detail))
        case AttemptEnd.CRASHED | AttemptEnd.DIED:
            return _suspect(detail, crashed_on) or Requeue()
        case AttemptEnd.FINISHED:
            raise ValueError("a finished attempt leaves nothing to decide")
        case _:
            assert_never(end)


def _suspect(detail: str, crashed_on: Sequence[str]) -> Fail | None:
    names = sorted(set(crashed_on))
    if len(names) < MAX_CRASHED_WORKERS and len(crashed_on) < MAX_CRASHES:
        return None
    said = f"crashed {len(crashed_on)} times, on {', '.join(names)}; last: {detail}"
    return Fail(JobError(FailureType.ENGINE_ERROR, said))


CRASHES = frozenset({AttemptEnd.CRASHED, AttemptEnd.DIED})
"""Ends that make a job a suspect, when they happen on different workers."""
FAULTS = CRASHES | {AttemptEnd.CORRUPT}
"""Ends that make a worker a suspect, when they happen to different jobs."""
TELLING = FAULTS | {AttemptEnd.FINISHED, AttemptEnd.REFUSED}
"""Ends that tell anything of the worker itself."""


class Cause(StrEnum):
    """Why a worker is in quarantine."""

    FAULTS = "faults"  # two different jobs failed on it in a row; a probe generation that succeeds releases it
    CORRUPT = "corrupt"  # an image was not the one that it announced; the operator alone releases it


@dataclass(frozen=True, slots=True)
class Quarantine:
    """`reason` is for people."""

    cause: Cause
    reason: str


def quarantine_after(recent: Sequence[tuple[AttemptEnd, str, str]]) -> Quarantine | None:
    """Whether a worker is to get no more jobs. `recent` are the end, job and detail of its newest attempts that
    tell anything (TELLING), the newest first, since it was last trusted."""
    if not recent:
        return None
    end, job, detail = recent[0]
    if end is AttemptEnd.CORRUPT:
        return Quarantine(Cause.CORRUPT, f"the image of job {job} was damaged: {detail}")
    before = recent[1] if len(recent) > 1 else None
    if end in FAULTS and before is not None and before[0] in FAULTS and before[1] != job:
        return Quarantine(Cause.FAULTS, f"jobs {before[1]} and {job} failed on it in a row; last: {detail}")
    return None
