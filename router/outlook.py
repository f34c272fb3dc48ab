"""How long a pool's next job would wait: what waits and runs by the store, who could make it by the fleet, and pace.

It is for telling clients when to ask again, and for refusing those who would wait in vain; so it may be a second old.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from router.fresh import Fresh
from router.limits import Share, predicted_wait_s
from router.pace import Pace
from router.paces import Paces
from router.store import Store

FRESH_S = 1.0
UNKNOWN_S = 30
"""After which one may ask again where nothing can be predicted."""
MAX_RETRY_S = 600
NOTHING = Share(0, 0)


@dataclass(frozen=True, slots=True)
class Outlook:
    """One pool as of a moment ago. `workers` are ready ones; without any, or without a pace, nothing is foretold."""

    shares: Mapping[str, Share]
    running: Share
    workers: int
    pace: Pace | None

    def wait_s(self, api_key_id: str) -> float | None:
        """How long a job that this key adds now waits for a worker."""
        if self.pace is None or not self.workers:
            return None
        others = [share for key, share in self.shares.items() if key != api_key_id]
        mine = self.shares.get(api_key_id, NOTHING)
        return predicted_wait_s(mine, others, self.running, self.workers, self.pace)

    def room_s(self, api_key_id: str | None, jobs: int = 1) -> int:
        """After how many seconds the queue, or this key's part of it, will be shorter by so many jobs."""
        every = [*self.shares.values(), self.running]
        count = sum(share.jobs for share in every)
        if self.pace is None or not self.workers or not count:
            return UNKNOWN_S
        one_s = self.pace.seconds(sum(share.work for share in every) // count) / self.workers
        turns = 1 if api_key_id is None else len(self.shares.keys() | {api_key_id})
        return min(max(1, ceil(one_s * turns * jobs)), MAX_RETRY_S)


class Outlooks:
    def __init__(
        self, store: Store, paces: Paces, ready_workers: Callable[[str], int], monotonic: Callable[[], float]
    ) -> None:
        self._store, self._paces = store, paces
        self._ready_workers = ready_workers
        self._fresh = Fresh(self._ask, FRESH_S, monotonic)

    async def of(self, pool: str) -> Outlook:
        """At most FRESH_S old. Raises StoreUnavailableError."""
        return await self._fresh.of(pool)

    async def _ask(self, pool: str) -> Outlook:
        return Outlook(
            await self._store.shares(pool),
            await self._store.running(pool),
            self._ready_workers(pool),
            await self._paces.of(pool),
        )
