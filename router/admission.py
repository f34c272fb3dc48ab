"""Whether new jobs are taken on, and when it makes sense to ask again if they are not.

The key's own limits and the queue's bound are held by the store, in the transaction that adds the jobs. Here is what
needs more than the store: who could make them, and how long they would wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from router.choice import pixels_of
from router.contract import BATCH
from router.errors import (
    AdmissionError,
    KeyQueueFullError,
    PoolForbiddenError,
    PoolUnavailableError,
    QueueFullError,
    UnmakeableError,
    WaitTooLongError,
)
from router.fleet import Fleet
from router.jobs import NewJob
from router.outlook import Outlooks
from router.store import Admitted, ApiKey, Repeatable, Store

POOL_RETRY_S = 30
"""After which a client may ask again for a pool without workers: somebody has to register one first."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`queue` jobs may wait in a pool, `batch_queue` in the batch pool. Nobody stays on the line for an image that is
    predicted to wait longer than `wait_s` seconds. `boot_s` is how long a request is held for a pool of which no
    worker is ready."""

    queue: int = 1000
    batch_queue: int = 200_000
    wait_s: float = 600.0
    boot_s: float = 900.0

    def queue_of(self, pool: str) -> int:
        return self.batch_queue if pool == BATCH else self.queue


class Admission:
    def __init__(self, store: Store, fleet: Fleet, outlooks: Outlooks, bounds: Bounds) -> None:
        self._store, self._fleet, self._outlooks = store, fleet, outlooks
        self.bounds = bounds

    async def admit(
        self,
        key: ApiKey,
        pool: str,
        wanted: Sequence[NewJob],
        repeatable: Repeatable | None,
        announce: Callable[[], None],
        front: str | None,
    ) -> Admitted:
        """Promise to make all of `wanted`, or none. `front` if the caller stays on the line there for them.

        `announce` is called once when they were taken on; or, where the store writes in order, as the last thing before
        it takes them on: whoever looks then stands in line behind them, and finds them without a journey in between.
        Who may be refused for the key's own limits (often, then) wakes nobody before.

        Raises AdmissionError, PoolForbiddenError, IdempotencyError, StoreUnavailableError.
        """
        self.check_pool(key, pool)
        refusal = await self._refusal(key, pool, wanted, waits=front is not None)
        try:
            bound = self.bounds.queue_of(pool)
            early = self._store.in_order and refusal is None and not key.limits.refusing
            if early:
                announce()
            admitted = await self._store.admit(key, pool, wanted, bound, repeatable, refusal, front)
            if not early and not admitted.joined:
                announce()
            return admitted
        except QueueFullError as error:
            outlook = await self._outlooks.of(pool)
            over = error.queued + len(wanted) - self.bounds.queue_of(pool)
            raise QueueFullError(pool, error.queued, outlook.room_s(None, over)) from None
        except KeyQueueFullError as error:
            outlook = await self._outlooks.of(pool)
            raise KeyQueueFullError(pool, error.allowed, outlook.room_s(key.id)) from None

    def check_pool(self, key: ApiKey, pool: str) -> None:
        """Raises PoolForbiddenError."""
        if key.limits.pools is not None and pool not in key.limits.pools:
            raise PoolForbiddenError(
                f"this API key may not use pool {pool}; it may use: {', '.join(key.limits.pools) or 'none'}"
            )

    async def check_takes(self, pool: str) -> None:
        """Raises PoolUnavailableError."""
        if not self._fleet.takes_jobs(pool) and not await self._store.pool_expected(pool):
            raise PoolUnavailableError(pool, "no worker is registered that takes new jobs", POOL_RETRY_S)

    async def _refusal(self, key: ApiKey, pool: str, wanted: Sequence[NewJob], *, waits: bool) -> AdmissionError | None:
        """Why new jobs cannot be taken on, whatever the key's limits say."""
        try:
            await self.check_takes(pool)
        except PoolUnavailableError as error:
            return error
        for new in {(pixels_of(new.request), new.terms.tier, new.terms.model): new for new in wanted}.values():
            vain = pixels_of(new.request) > self._fleet.largest(pool, new.terms.tier, new.terms.model)
            if vain and not await self._store.pool_expected(pool):  # or those who come may make it
                return UnmakeableError(pool, described(new), POOL_RETRY_S)
        if waits:
            wait_s = (await self._outlooks.of(pool)).wait_s(key.id)
            if wait_s is not None and wait_s > self.bounds.wait_s:
                return WaitTooLongError(pool, wait_s, max(1, ceil(wait_s - self.bounds.wait_s)))
        return None


def described(new: NewJob) -> str:
    """What a worker has to be able to do for it: `512x512 with tier fp8, model house`."""
    terms = [f"{name} {value}" for name, value in (("tier", new.terms.tier), ("model", new.terms.model)) if value]
    return f"{new.request.width}x{new.request.height}" + (f" with {', '.join(terms)}" if terms else "")
