"""The fleet of a process that drives its workers: one `router.member` each, as the store has them registered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from router.choice import Spill
from router.contract import PoolView, WorkerRegistration, WorkerView
from router.dispatch import Dispatcher
from router.fleet import largest, pool_views, ready_for, ready_pools, ready_workers
from router.jobs import AttemptEnd
from router.member import Member, Rhythm
from router.paces import Paces
from router.queue import Queue
from router.spill import SpillRule, spills
from router.store import ROUTER, RegisteredWorker, Store
from router.worker_client import Patience


class DrivenFleet:
    """`Fleet`. Changes take turns. `driver` is this process's name: leases that it held when it ended are joined."""

    def __init__(
        self,
        store: Store,
        queue: Queue,
        dispatcher: Dispatcher,
        rhythm: Rhythm,
        patience: Patience,
        now: Callable[[], datetime],
        paces: Paces,
        spill_rules: Sequence[SpillRule] = (),
        *,
        driver: str = ROUTER,
    ) -> None:
        self._paces, self._spill_rules = paces, spill_rules
        self._store, self._queue, self._dispatcher = store, queue, dispatcher
        self._rhythm, self._patience, self._now = rhythm, patience, now
        self.driver = driver
        self._members: dict[str, Member] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Take up the workers of the store, and with each the leases that it still holds."""
        leases = await self._dispatcher.take_up(self.driver)
        for worker in await self._store.workers():
            self._begin(worker).start(lease for lease in leases if lease.worker == worker.name)

    async def stop(self) -> None:
        """Stop consuming. Attempts are left as they are: the next router joins them, or their leases run out."""
        async with self._changing:
            await asyncio.gather(*(member.stop() for member in self._members.values()))
            self._members.clear()

    async def finish(self) -> None:
        """Take no more jobs, and return when those that run have ended."""
        async with self._changing:
            await asyncio.gather(*(member.finish() for member in self._members.values()))

    async def keep_up(self, every_s: float) -> None:
        """Follow what others change in the register."""
        while True:
            await self.reconcile()
            await asyncio.sleep(every_s)

    async def reconcile(self) -> None:
        """Once."""
        async with self._changing:
            registered = {worker.name: worker for worker in await self._store.workers()}
            for name in self._members.keys() - registered.keys():
                await self._end(name, "the worker was removed")
            for worker in registered.values():
                await self._take(worker)

    async def register(self, name: str, registration: WorkerRegistration) -> WorkerView:
        async with self._changing:
            worker = await self._store.put_worker(name, registration.url, registration.token, registration.pool)
            member = await self._take(worker)
            self._queue.announce(worker.pool)
            return member.view()

    async def drain(self, name: str) -> WorkerView | None:
        async with self._changing:
            worker = await self._store.drain_worker(name)
            return None if worker is None else (await self._take(worker)).view()

    async def release(self, name: str) -> WorkerView | None:
        async with self._changing:
            worker = await self._store.release_worker(name)
            return None if worker is None else (await self._take(worker)).view()

    async def remove(self, name: str) -> None:
        async with self._changing:
            await self._store.remove_worker(name)
            await self._end(name, "the worker was removed")

    def views(self) -> list[WorkerView]:
        return [self._members[name].view() for name in sorted(self._members)]

    async def pools(self) -> list[PoolView]:
        return pool_views(self.views(), await self._store.counts())

    def ready_pools(self) -> list[str]:
        return ready_pools(self.views())

    def takes_jobs(self, pool: str) -> bool:
        return any(member.worker.pool == pool and not member.worker.draining for member in self._members.values())

    def ready_workers(self, pool: str) -> int:
        return ready_workers(self.views(), pool)

    def ready_for(self, pool: str, pixels: int, tier: str | None, model: str | None) -> bool:
        return ready_for(self.views(), pool, pixels, tier, model)

    def largest(self, pool: str, tier: str | None, model: str | None) -> int:
        said = [member.capability for member in self._members.values() if member.worker.pool == pool]
        return largest(said, tier, model)

    async def _take(self, worker: RegisteredWorker) -> Member:
        """The member for what is registered now: the one that there is, unless the worker is another."""
        member = self._members.get(worker.name)
        if member is None or _address(member.worker) != _address(worker):
            await self._end(worker.name, "the worker was registered anew, elsewhere")
            member = self._begin(worker)
            member.start(())
        elif (worker.draining, worker.quarantine) != (member.worker.draining, member.worker.quarantine):
            member.update(worker)
        return member

    def _begin(self, worker: RegisteredWorker) -> Member:
        member = Member(
            worker,
            self._store,
            self._queue,
            self._dispatcher,
            self._rhythm,
            self._patience,
            self._now,
            self._spills,
            driver=self.driver,
        )
        self._members[worker.name] = member
        return member

    async def _spills(self, member: Member) -> Sequence[Spill]:
        pool = member.worker.pool
        if not any(rule.giver == pool for rule in self._spill_rules):
            return ()
        pace = await self._paces.of(pool)
        others = (other for other in self._members.values() if other is not member and other.worker.pool == pool)
        return spills(self._spill_rules, pool, [other.worker.name for other in others if other.idle], pace)

    async def _end(self, name: str, why: str) -> None:
        member = self._members.pop(name, None)
        for lease in await member.stop() if member else ():
            job = await self._store.end_attempt(lease, AttemptEnd.LOST, why)
            if job is not None:
                self._queue.announce(job.pool)


def _address(worker: RegisteredWorker) -> tuple[str, str, str]:
    return worker.url, worker.token, worker.pool


async def keep_reporting(store: Store, fleet: DrivenFleet, every_s: float) -> None:
    """Write down what this process believes of its workers, for those that drive none."""
    while True:
        await store.report(fleet.driver, fleet.views(), keep_ms=int(every_s * 30_000))
        await asyncio.sleep(every_s)
