"""What is made of how a worker behaves: decisions of `router.member`, as functions of plain values.

A worker that fails is asked ever more rarely (the breaker): half a second's pause after the first failure, up to a
quarter of a minute, then one job to try it with, and no second place before that one went well.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from router.contract import WorkerHealth
from router.dispatch import Outcome
from router.errors import WorkerError, WorkerUnavailableError, WorkerUnreachableError
from router.jobs import AttemptEnd
from worker.contract import WorkerState

HEALTH = {
    WorkerState.LOADING: WorkerHealth.LOADING,
    WorkerState.READY: WorkerHealth.READY,
    WorkerState.DRAINING: WorkerHealth.DRAINING,
    WorkerState.BROKEN: WorkerHealth.BROKEN,
}
FAILURES = frozenset({AttemptEnd.RETURNED, AttemptEnd.LOST, AttemptEnd.CRASHED, AttemptEnd.CORRUPT})
"""Ends that speak against the worker. One that refuses a request for good has answered as it should."""


UNKEPT_PAUSE_S = 15.0


@dataclass(frozen=True, slots=True)
class Belief:
    health: WorkerHealth
    reason: str
    since: datetime


def failures_after(outcome: Outcome, failures: int) -> int:
    """How many attempts in a row have failed for the worker's sake, after one more that ended so.

    A cancelled attempt, one that was no longer ours to end, and one that only waited behind another tell nothing.
    """
    if outcome.unkept:
        return 0  # it has made the image
    if outcome.end in FAILURES:
        return failures if outcome.waited else failures + 1
    return 0 if outcome.end in (AttemptEnd.FINISHED, AttemptEnd.REFUSED) else failures


def pause_s(outcome: Outcome, failures: int) -> float:
    """How long a worker gets no job after an attempt that ended so, the `failures`-th in a row, in seconds.

    Half a second gives the job to whoever else is free; a worker that keeps failing is tried ever more
    rarely, up to four times a minute. One whose image could not be stored is not to blame, and is spared more of the
    kind for a while.
    """
    if outcome.unkept:
        return UNKEPT_PAUSE_S
    if outcome.end in FAILURES and failures:
        return float(min(0.5 * 2 ** min(failures - 1, 10), 15.0))
    return 0.0


def belief_of(error: WorkerError) -> tuple[WorkerHealth, str] | None:
    """What an error tells of the worker's health; None if nothing (it was busy)."""
    if isinstance(error, WorkerUnavailableError):
        return None
    health = WorkerHealth.UNREACHABLE if isinstance(error, WorkerUnreachableError) else WorkerHealth.BROKEN
    return health, str(error)
