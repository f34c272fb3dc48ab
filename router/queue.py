"""Wake-ups for workers' consumers. The store says what waits; a queue only says that it may be worth a look.

So wake-ups may be lost, doubled or late: consumers look now and then anyway. `EmbeddedQueue` is for one
router process.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import Protocol


class Queue(Protocol):
    def announce(self, pool: str) -> None:
        """Something may wait in `pool`. Wakes one waiter, which announces again when it found a job."""
        ...

    async def wait(self, pool: str, timeout_s: float) -> None:
        """Return when `pool` was announced, or after `timeout_s` seconds."""
        ...


class EmbeddedQueue:
    """Wakes one waiter an announcement, the one that has waited longest.

    One, not all: of a hundred idle consumers, ninety-nine would ask the store in vain. An announcement
    that finds nobody waiting is kept for the next who comes, because that one may have looked just before.
    """

    def __init__(self) -> None:
        self._waiting: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)
        self._kept: set[str] = set()

    def announce(self, pool: str) -> None:
        waiting = self._waiting[pool]
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._kept.add(pool)

    async def wait(self, pool: str, timeout_s: float) -> None:
        if pool in self._kept:
            self._kept.discard(pool)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[pool].append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.announce(pool)  # woken, but unable to look: somebody else should
            raise
        finally:
            if waiter in self._waiting[pool]:
                self._waiting[pool].remove(waiter)
