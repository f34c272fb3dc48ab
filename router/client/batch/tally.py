"""What a batch has done and what is left of it, as numbers for whoever watches. Pure; the clock is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 300.0
"""The rate is of the last minutes: machines come and go."""


@dataclass
class Tally:
    """Counts of lines. `price` is US dollars an hour of one GPU, None if nobody knows it."""

    total: int = 0
    invalid: int = 0
    failed: int = 0
    done_before: int = 0
    done: int = 0
    left_for_later: int = 0
    gpu_s: float = 0.0
    price: float | None = None
    unsafe: int = 0
    _ends: deque[float] = field(default_factory=deque)
    _begun_at: float | None = None

    def begin(self, now: float) -> None:
        self._begun_at = now

    def made(self, now: float, gpu_s: float, *, safe: bool) -> None:
        self.done += 1
        self.gpu_s += gpu_s
        self.unsafe += not safe
        self._ends.append(now)

    @property
    def finished(self) -> int:
        """Lines that have an image."""
        return self.done_before + self.done

    @property
    def left(self) -> int:
        """Lines that this run will still work on."""
        return max(0, self.total - self.finished - self.failed - self.invalid - self.left_for_later)

    @property
    def cost(self) -> float | None:
        """US dollars for all images, earlier runs' included; None if the price is not known."""
        return None if self.price is None else self.gpu_s / 3600 * self.price

    def rate(self, now: float) -> float | None:
        """Images a second lately; None before the first."""
        while self._ends and self._ends[0] < now - WINDOW_S:
            self._ends.popleft()
        if not self._ends or self._begun_at is None:
            return None
        span = min(now - self._begun_at, WINDOW_S)
        return len(self._ends) / span if span > 0 else None

    def seconds_left(self, now: float) -> float | None:
        rate = self.rate(now)
        return self.left / rate if rate else None
