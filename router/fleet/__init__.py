"""The registered workers: who there is, what is believed of each, and what that makes of the pools.

`Fleet` is the seam: `router.fleet.driven` drives its workers in this process, `router.fleet.seen` knows them from
what the processes that drive them have written down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from router.choice import Capability
from router.contract import JobState, PoolView, WorkerHealth, WorkerRegistration, WorkerView
from worker.contract import MAX_PIXELS


class Fleet(Protocol):
    """Reading never waits, except where it says that it asks the store."""

    async def register(self, name: str, registration: WorkerRegistration) -> WorkerView:
        """Register or change a worker; again with the same disturbs nothing and ends a draining."""
        ...

    async def drain(self, name: str) -> WorkerView | None:
        """No new job for it; what runs is finished. None if there is no such worker."""
        ...

    async def release(self, name: str) -> WorkerView | None:
        """Out of quarantine. None if there is no such worker."""
        ...

    async def remove(self, name: str) -> None:
        """Forget the worker; gone is success. A job that it was at goes back to the queue."""
        ...

    def views(self) -> list[WorkerView]: ...

    async def pools(self) -> list[PoolView]:
        """Every pool that has workers or jobs. Asks the store."""
        ...

    def ready_pools(self) -> list[str]:
        """Pools that could make an image now."""
        ...

    def takes_jobs(self, pool: str) -> bool:
        """Whether anybody is registered for the pool who is not told to drain."""
        ...

    def ready_workers(self, pool: str) -> int:
        """How many could make an image now, or after the one that they make."""
        ...

    def ready_for(self, pool: str, pixels: int, tier: str | None, model: str | None) -> bool:
        """Whether one of those could make an image of so many pixels, of this tier and model (None: any)."""
        ...

    def largest(self, pool: str, tier: str | None, model: str | None) -> int:
        """Pixels of the largest image of this tier and model (None or empty: any) that the pool's workers can make. One
        that has not said yet what it can may make any, and so may a pool without workers."""
        ...


def largest(said: Collection[Capability | None], tier: str | None, model: str | None) -> int:
    """As `Fleet.largest`, of workers of whom this is `said`."""
    if not said or None in said:
        return MAX_PIXELS
    return max(able.largest(tier, model) for able in said if able is not None)


def usable(view: WorkerView) -> bool:
    """Whether it could make an image now, or after the one that it makes."""
    return view.health is WorkerHealth.READY and not view.draining


def ready_pools(views: Sequence[WorkerView]) -> list[str]:
    return sorted({view.pool for view in views if usable(view)})


def ready_workers(views: Sequence[WorkerView], pool: str) -> int:
    return sum(view.pool == pool and usable(view) for view in views)


def ready_for(views: Sequence[WorkerView], pool: str, pixels: int, tier: str | None, model: str | None) -> bool:
    able = (Capability(view.tier, view.model, view.max_pixels) for view in views if view.pool == pool and usable(view))
    return any(pixels <= one.largest(tier, model) for one in able)


def pool_views(views: Sequence[WorkerView], counts: Mapping[str, Mapping[JobState, int]]) -> list[PoolView]:
    return [
        PoolView(
            name=pool,
            workers=sum(view.pool == pool for view in views),
            ready=ready_workers(views, pool),
            **{state.value: counts.get(pool, {}).get(state, 0) for state in JobState},
        )
        for pool in sorted(counts.keys() | {view.pool for view in views})
    ]
