"""Each pool's measured pace, read from the store now and then, so that all routers of one store agree on it."""

from __future__ import annotations

from collections.abc import Callable

from router.fresh import Fresh
from router.pace import Pace, fitted
from router.store import Store

FRESH_S = 5.0
LATEST = 100
"""Jobs that a pace is learnt from: enough for a mean, few enough to follow another mix of sizes within minutes."""


class Paces:
    def __init__(self, store: Store, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._fresh = Fresh(self._ask, FRESH_S, monotonic, says=lambda pace: pace is not None)

    async def of(self, pool: str) -> Pace | None:
        """At most FRESH_S old; None only as long as the pool has made no image. Raises StoreUnavailableError."""
        return await self._fresh.of(pool)

    async def _ask(self, pool: str) -> Pace | None:
        return fitted(await self._store.recent_services(pool, LATEST))
