"""Wake-ups for workers' consumers. The store says what waits; a queue only says that it may be worth a look.

So wake-ups may be lost, doubled or late: consumers look now and then anyway, and again at once after a look that
found something. `EmbeddedQueue` is for one router process.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
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


@dataclass(frozen=True, slots=True)
class _Waiter:
    who: str
    woken: asyncio.Future[WakeUp]


class EmbeddedQueue:
    """Wakes one waiter a job, the one that has waited longest.

    One, not all: of a hundred idle consumers, ninety-nine would ask the store in vain. A wake-up that finds
    nobody waiting is kept for the next who comes, because that one may have looked just before.
    """

    def __init__(self) -> None:
        self._waiting: defaultdict[str, deque[_Waiter]] = defaultdict(deque)
        self._kept: defaultdict[str, deque[WakeUp]] = defaultdict(deque)

    def announce(self, pool: str, jobs: int = 1) -> None:
        for _ in range(min(jobs, KEPT_MAX)):
            self.offer(pool, WakeUp())

    def offer(self, pool: str, wake_up: WakeUp) -> None:
        """Give this wake-up to whoever has waited longest, or to the next who comes."""
        if self._hand(pool, wake_up):
            return
        kept = self._kept[pool]
        if len(kept) < KEPT_MAX:
            kept.append(wake_up)
        else:
            wake_up.done()

    def take_back(self, pool: str, wake_up: WakeUp) -> bool:
        """Whether this wake-up was still nobody's; it is forgotten then."""
        try:
            self._kept[pool].remove(wake_up)
        except ValueError:
            return False
        return True

    def pass_on(self, pool: str, wake_up: WakeUp, who: str) -> None:
        tried = WakeUp(wake_up.tried | {who}, wake_up.done)
        if not self._hand(pool, tried):
            wake_up.done()

    async def wait(self, pool: str, who: str, timeout_s: float) -> WakeUp | None:
        if self._kept[pool]:
            return self._kept[pool].popleft()
        if timeout_s <= 0:
            return None
        waiter = _Waiter(who, asyncio.get_running_loop().create_future())
        self._waiting[pool].append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.woken
        except TimeoutError:
            return _given(waiter.woken)  # it may have come in the same moment
        except asyncio.CancelledError:
            if wake_up := _given(waiter.woken):
                self.offer(pool, wake_up)  # woken, but unable to look: somebody else should
            raise
        finally:
            if waiter in self._waiting[pool]:
                self._waiting[pool].remove(waiter)

    def _hand(self, pool: str, wake_up: WakeUp) -> bool:
        """Whether a waiter was found who has not tried yet."""
        for waiter in self._waiting[pool]:
            if not waiter.woken.done() and waiter.who not in wake_up.tried:
                self._waiting[pool].remove(waiter)
                waiter.woken.set_result(wake_up)
                return True
        return False


def _given(woken: asyncio.Future[WakeUp]) -> WakeUp | None:
    return woken.result() if woken.done() and not woken.cancelled() else None
