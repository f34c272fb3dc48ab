"""Wake-ups for workers' consumers. The store says what waits; a queue only says that it may be worth a look.

So wake-ups may be lost, doubled or late: consumers look now and then anyway, and again at once after a look that
found something. `router.queue.embedded` is for one router process, `router.queue.celery` for several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

KEPT_MAX = 1000
"""Wake-ups that are kept for nobody in particular. Whoever finds a job looks again, so more would be no use."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class WakeUp:
    """One look at the store that somebody is owed. `tried` are those who looked in vain, being unable to take what
    waits; `done` is called once, when the look and the job that came of it have ended."""

    tried: frozenset[str] = frozenset()
    done: Callable[[], None] = field(default=_nothing)


class Queue(Protocol):
    def announce(self, pool: str, jobs: int = 1) -> None:
        """So many more jobs may wait in `pool`: as many waiters are woken, now or when they come."""
        ...

    async def wait(self, pool: str, who: str, timeout_s: float) -> WakeUp | None:
        """A wake-up for `who`, which must be ended by `done` or handed on by `pass_on`; None after `timeout_s`
        seconds without one. With 0, what is there already."""
        ...

    def pass_on(self, pool: str, wake_up: WakeUp, who: str) -> None:
        """`who` could not take what waits; somebody who has not tried yet might. With none left, it is done."""
        ...
