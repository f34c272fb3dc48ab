"""What a key and a pool may ask for, and how long one who may not has to wait. Values only; times in milliseconds.

The numbers that these decisions need are read, and the tokens written, in the transaction that takes the jobs on
(`router.store.admission_rows`): so they hold however many routers share the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from router.pace import Pace


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None is no limit. `per_minute` counts requests that create jobs, whatever they create.

    `running` jobs may run at once: more wait, until others end. `waiting` jobs may wait in each pool besides those
    that could run at once by `running`: more are refused. `pools` are those that the key may use.
    """

    per_minute: int | None = None
    running: int | None = None
    waiting: int | None = None
    pools: tuple[str, ...] | None = None

    @property
    def refusing(self) -> bool:
        """Whether a request may be refused for them alone."""
        return self.per_minute is not None or self.waiting is not None


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class Bucket:
    """A key's tokens: one a request; `per_minute` of them come back in a minute, and no more than that are kept."""

    tokens: float
    at: int


@dataclass(frozen=True, slots=True)
class Rate:
    """What OpenAI's `x-ratelimit-*-requests` headers tell. `reset_s` is when all of `limit` are there again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """One request more. `bucket` is what is left; `retry_after_s` is None if the request may pass."""

    bucket: Bucket
    rate: Rate
    retry_after_s: int | None


def take(bucket: Bucket | None, per_minute: int, now: int) -> Taken:
    """Take a token if there is one. A clock that went back gives nothing and takes nothing."""
    held = float(per_minute)
    if bucket is not None:
        held = min(held, bucket.tokens + max(0, now - bucket.at) * per_minute / 60_000)
        now = max(now, bucket.at)
    passes = held >= 1
    left = held - 1 if passes else held
    rate = Rate(per_minute, int(left), (per_minute - left) * 60 / per_minute)
    missing_s = max(1, ceil((1 - left) * 60 / per_minute - 1e-9))
    return Taken(Bucket(left, now), rate, None if passes else missing_s)


@dataclass(frozen=True, slots=True)
class Share:
    """What waits of one key in one pool."""

    jobs: int
    work: int


def predicted_wait_s(mine: Share, others: Sequence[Share], running: Share, workers: int, pace: Pace) -> float:
    """How long a job that is added now waits for a worker, in seconds.

    Keys take turns, so before it come all of its own key's and as many of each other key's. What runs is half
    done, as far as anybody knows. `workers` are those that are ready, busy or not.
    """
    before_jobs, before_work = mine.jobs, mine.work
    for share in others:
        if share.jobs:
            taken = min(share.jobs, mine.jobs + 1)
            before_jobs += taken
            before_work += share.work * taken // share.jobs
    if before_jobs + running.jobs < workers:
        return 0.0
    busy_s = pace.seconds(running.work, running.jobs) / 2
    return (pace.seconds(before_work, before_jobs) + busy_s) / max(workers, 1)
