"""How long a job takes a worker, learnt from those that have ended. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Service:
    """One job that a worker has made: how much work it was (`router.choice.work_of`), and the seconds it took."""

    work: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a job = `base_s` + `work` · `s_per_work`."""

    base_s: float
    s_per_work: float

    def seconds(self, work: int, jobs: int = 1) -> float:
        """Of `jobs` jobs with `work` between them, one after another."""
        return self.base_s * jobs + self.s_per_work * work

    def work_within(self, seconds: float) -> int:
        """Of the largest job that takes no longer."""
        if seconds < self.base_s:
            return 0
        return int(min((seconds - self.base_s) / self.s_per_work, 2.0**62)) if self.s_per_work > 0 else 2**62


def fitted(services: Sequence[Service]) -> Pace | None:
    """The line through `services` with the least squares; None of none.

    Where all were of one size, or larger ones were quicker, time is taken to grow with the work from nothing:
    that is what denoising does, and it errs towards more for what is larger than everything seen.
    """
    if not services:
        return None
    n = len(services)
    mean_work = sum(one.work for one in services) / n
    mean_s = sum(one.seconds for one in services) / n
    variance = sum((one.work - mean_work) ** 2 for one in services) / n
    covariance = sum((one.work - mean_work) * (one.seconds - mean_s) for one in services) / n
    slope = covariance / variance if variance > (0.05 * mean_work) ** 2 else 0.0
    if slope <= 0:
        return Pace(0.0, mean_s / mean_work)
    base = mean_s - slope * mean_work
    return Pace(base, slope) if base >= 0 else Pace(0.0, mean_s / mean_work)
