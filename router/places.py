"""The places of one worker: the generations that it holds for us, and when there is room for one more.

Values with a clock passed in, in seconds of one monotonic clock. When the running one ends is predicted by
`router.lookahead`; who fills a place is `router.member`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from router import lookahead
from router.jobs import Lease
from router.lookahead import Course, Tails
from router.worker_client import Event
from worker.contract import Finished, WorkerStatus

RECENT = 32
"""Generations that ended here and that an older look at the worker may still show."""


@dataclass(slots=True, eq=False)
class Held:
    """A lease that is driven, and who the worker was when it got it."""

    lease: Lease
    process: str
    machine: str
    course: Course | None = None

    @property
    def pixels(self) -> int:
        return self.lease.request.width * self.lease.request.height


@dataclass(slots=True)
class Places:
    """`ahead_s`: how long before the predicted end of the running generation the second place opens; 0: never."""

    ahead_s: float
    _held: dict[str, Held] = field(default_factory=dict)
    _recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))
    _tails: Tails = field(default_factory=Tails)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def leases(self) -> Collection[Lease]:
        return [held.lease for held in self._held.values()]

    def take(self, lease: Lease, status: WorkerStatus | None) -> Held:
        """One more is held, by the worker that `status` told of."""
        held = Held(lease, status.process if status else "", status.machine if status else "")
        self._held[lease.generation_id] = held
        return held

    def leave(self, held: Held) -> None:
        del self._held[held.lease.generation_id]

    def ended(self, held: Held) -> None:
        """Its attempt ended here: a look at the worker that is older than that may still show it."""
        self._recent.append(held.lease.generation_id)

    def observe(self, held: Held, event: Event, now: float) -> None:
        before = held.course
        held.course = lookahead.after(before, event, now)
        if isinstance(event, Finished) and before is not None and before.step == before.steps:
            self._tails = self._tails.with_one(held.pixels, now - before.step_at)

    def open(self, now: float, *, second: bool) -> bool:
        """Whether one is open; of a worker that runs one, only where it may have a `second`."""
        if not self._held:
            return True
        return second and len(self._held) < lookahead.PLACES and lookahead.may_open(self._left_s(now), self.ahead_s)

    def opens_in_s(self, now: float) -> float | None:
        """How long waiting for the second place may be of use if nothing happens; None: only something can open it."""
        if len(self._held) != 1 or self.ahead_s <= 0:
            return None
        left = self._left_s(now)
        return None if left is None else max(left - self.ahead_s, 0.001)

    def foreign(self, status: WorkerStatus | None) -> bool:
        """Whether somebody else's generation holds a place: a lost attempt's, most likely. It is let end first."""
        if status is None:
            return False
        places = {status.running, status.accepted} - {None, *self._recent}
        return not places <= self._held.keys()

    def _left_s(self, now: float) -> float | None:
        """Until the generation that runs ends, as predicted."""
        (held,) = self._held.values()
        return None if held.course is None else lookahead.ends_in_s(held.course, self._tails.of(held.pixels), now)
