"""The queue of one process: waiters in the order they came."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass

from router.queue import KEPT_MAX, WakeUp


@dataclass(frozen=True, slots=True)
class _Waiter:
    who: str
    woken: asyncio.Future[WakeUp]


class EmbeddedQueue:
    """`Queue` within one process. Wakes one waiter a job, the one that has waited longest.

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
