"""The fleet of a router that drives no worker: what is registered, and what those who drive believe, from the store.

Looked up every second or so, and held in between, so that admission asks nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from router.choice import Capability
from router.contract import PoolView, WorkerHealth, WorkerRegistration, WorkerView, fingerprint
from router.fleet import largest, pool_views, ready_for, ready_pools, ready_workers
from router.store import RegisteredWorker, Store

BELIEVED_MS = 15_000
"""How old a driver's word may be; it is renewed every few seconds."""
_BEST = (
    WorkerHealth.READY,
    WorkerHealth.QUARANTINED,
    WorkerHealth.LOADING,
    WorkerHealth.DRAINING,
    WorkerHealth.UNKNOWN,
    WorkerHealth.BROKEN,
    WorkerHealth.UNREACHABLE,
)
"""If drivers disagree: one that reaches a worker knows more than one that does not."""


def merged(worker: RegisteredWorker, said: Sequence[WorkerView], since: datetime) -> WorkerView:
    """One worker as all of its drivers together see it. `since` is for one that no driver speaks of."""
    if not said:
        known = worker.capability or Capability()
        return WorkerView(
            name=worker.name,
            url=worker.url,
            pool=worker.pool,
            token_fingerprint=fingerprint(worker.token),
            health=WorkerHealth.UNKNOWN,
            reason="no consumer has spoken of it lately; is one running? (letterpress consume)",
            since=since,
            draining=worker.draining,
            running=0,
            finished=worker.finished,
            model=known.model,
            tier=known.tier,
            max_pixels=known.max_pixels,
        )
    best = min(said, key=lambda view: _BEST.index(view.health))
    running = sum(view.running for view in said)
    return best.model_copy(update={"draining": worker.draining, "running": running, "finished": worker.finished})


class SeenFleet:
    """`Fleet`."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now
        self._registered: Sequence[RegisteredWorker] = ()
        self._views: list[WorkerView] = []

    async def look(self) -> None:
        registered = await self._store.workers()
        said = await self._store.reports(BELIEVED_MS)
        before, now, found = {view.name: view for view in self._views}, self._now(), list[WorkerView]()
        for worker in registered:
            known = before.get(worker.name)
            since = known.since if known is not None and known.health is WorkerHealth.UNKNOWN else now
            # What was said of a worker that is registered elsewhere now is said of another.
            itself = worker.name, worker.url, worker.pool, fingerprint(worker.token)
            of_it = [view for view in said if (view.name, view.url, view.pool, view.token_fingerprint) == itself]
            found.append(merged(worker, of_it, since))
        self._registered, self._views = registered, found

    async def keep_looking(self, every_s: float) -> None:
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def register(self, name: str, registration: WorkerRegistration) -> WorkerView:
        await self._store.put_worker(name, registration.url, registration.token, registration.pool)
        view = await self._view(name)
        if view is None:
            raise LookupError(f"worker {name} was removed in the moment in which it was registered")
        return view

    async def drain(self, name: str) -> WorkerView | None:
        await self._store.drain_worker(name)
        return await self._view(name)

    async def release(self, name: str) -> WorkerView | None:
        await self._store.release_worker(name)
        return await self._view(name)

    async def remove(self, name: str) -> None:
        await self._store.remove_worker(name)
        await self.look()

    def views(self) -> list[WorkerView]:
        return list(self._views)

    async def pools(self) -> list[PoolView]:
        return pool_views(self._views, await self._store.counts())

    def ready_pools(self) -> list[str]:
        return ready_pools(self._views)

    def ready_workers(self, pool: str) -> int:
        return ready_workers(self._views, pool)

    def ready_for(self, pool: str, pixels: int, tier: str | None, model: str | None) -> bool:
        return ready_for(self._views, pool, pixels, tier, model)

    def takes_jobs(self, pool: str) -> bool:
        return any(worker.pool == pool and not worker.draining for worker in self._registered)

    def largest(self, pool: str, tier: str | None, model: str | None) -> int:
        return largest([worker.capability for worker in self._registered if worker.pool == pool], tier, model)

    async def _view(self, name: str) -> WorkerView | None:
        await self.look()
        return next((view for view in self.views() if view.name == name), None)
