"""The job, its attempts and leases as plain values, and what becomes of a job after an attempt.

Nothing here waits, stores or looks at a clock. Times are integer milliseconds since the Unix epoch,
by the database's clock (`router.store`), so that several routers agree on when a lease ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from router.contract import JobState
from worker.contract import FailureType, GenerationRequest

MAX_CRASHED_WORKERS = 2
"""A job that ends in an engine error on this many different workers is itself the suspect, and fails."""
MAX_CRASHES = 3
"""So it is after this many engine errors on any: a pool of one worker must not try for ever."""


@dataclass(frozen=True, slots=True)
class Image:
    """A stored artifact. `path` is relative to the artifact store's root."""

    path: str
    sha256: str
    bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class JobError:
    type: str
    detail: str


@dataclass(frozen=True, slots=True)
class Job:
    """One image that the router has promised to finish. `started_at` is when its first attempt began."""

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


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to finish one attempt at a job, until `expires_at`."""

    job_id: str
    attempt: int
    worker: str
    pool: str
    expires_at: int
    request: GenerationRequest

    @property
    def generation_id(self) -> str:
        return f"{self.job_id}.{self.attempt}"


class AttemptEnd(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    LOST = "lost"  # the worker, its machine or the way to it went away
    EXPIRED = "expired"  # nobody renewed the lease
    CRASHED = "crashed"  # the engine failed on it
    REFUSED = "refused"  # the worker says that the request can never work
    RETURNED = "returned"  # the worker could not take it now: busy, loading, draining
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

    `crashed_on` names a worker for each attempt at the job that crashed, this one included. Loss of
    infrastructure never counts against the job; crashes do.
    """
    match end:
        case AttemptEnd.LOST | AttemptEnd.EXPIRED | AttemptEnd.RETURNED:
            return Requeue()
        case AttemptEnd.CANCELLED:
            return Cancel()
        case AttemptEnd.REFUSED:
            return Fail(JobError(FailureType.INVALID_REQUEST, detail))
        case AttemptEnd.CRASHED:
            names = sorted(set(crashed_on))
            if len(names) < MAX_CRASHED_WORKERS and len(crashed_on) < MAX_CRASHES:
                return Requeue()
            return Fail(
                JobError(
                    FailureType.ENGINE_ERROR, f"crashed {len(crashed_on)} times, on {', '.join(names)}; last: {detail}"
                )
            )
        case AttemptEnd.FINISHED:
            raise ValueError("a finished attempt leaves nothing to decide")
        case _:
            assert_never(end)
