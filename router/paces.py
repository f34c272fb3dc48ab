"""Each pool's measured pace, read from the store now and then, so that all routers of one store agree on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router.pace import Pace, fitted
from router.store import Store

FRESH_S = 5.0
LATEST = 100
"""Jobs that a pace is learnt from: enough for a mean, few enough to follow another mix of sizes within minutes."""


@dataclass(frozen=True, slots=True)
class _Known:
    pace: Pace | None
    at: float


class Paces:
    def __init__(self, store: Store, monotonic: Callable[[], float]) -> None:
        self._store, self._monotonic = store, monotonic
        self._known: dict[str, _Known] = {}

    async def of(self, pool: str) -> Pace | None:
        """At most FRESH_S old; None as long as the pool has made no image. Raises StoreUnavailableError."""
        known, now = self._known.get(pool), self._monotonic()
        if known is None or now - known.at > FRESH_S:
            known = self._known[pool] = _Known(fitted(await self._store.recent_services(pool, LATEST)), now)
        return known.pace
