"""The registered workers: who there is, what is believed of each, and what that makes of the pools.

Each worker's life is in `router.member`; the register itself is the store's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from router.choice import Lane, Spill
from router.contract import JobState, PoolView, WorkerRegistration, WorkerView
from router.dispatch import Dispatcher
from router.jobs import AttemptEnd
from router.member import Member, Rhythm
from router.paces import Paces
from router.queue import Queue
from router.spill import SpillRule, spills
from router.store import RegisteredWorker, Store
from router.worker_client import Patience


class Fleet:
    """Changes take turns. Reading never waits, except where it says that it asks the store."""

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
    ) -> None:
        self._paces, self._spill_rules = paces, spill_rules
        self._store, self._queue, self._dispatcher = store, queue, dispatcher
        self._rhythm, self._patience, self._now = rhythm, patience, now
        self._members: dict[str, Member] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Take up the workers of the store, and with each the leases that it still holds."""
        leases = await self._store.held_leases()
        for worker in await self._store.workers():
            self._begin(worker).start(lease for lease in leases if lease.worker == worker.name)

    async def stop(self) -> None:
        """Stop consuming. Attempts are left as they are: the next router joins them, or their leases run out."""
        async with self._changing:
            await asyncio.gather(*(member.stop() for member in self._members.values()))
            self._members.clear()

    async def register(self, name: str, registration: WorkerRegistration) -> WorkerView:
        """Register or change a worker; again with the same disturbs nothing and ends a draining."""
        async with self._changing:
            worker = await self._store.put_worker(name, registration.url, registration.token, registration.pool)
            member = self._members.get(name)
            if member is not None and _address(member.worker) == _address(worker):
                member.update(worker)
            else:
                await self._end(name, "the worker was registered anew, elsewhere")
                member = self._begin(worker)
                member.start(())
            self._queue.announce(worker.pool)
            return member.view()

    async def drain(self, name: str) -> WorkerView | None:
        """No new job for it; what runs is finished. None if there is no such worker."""
        async with self._changing:
            worker = await self._store.drain_worker(name)
            member = self._members.get(name)
            if worker is None or member is None:
                return None
            member.update(worker)
            return member.view()

    async def release(self, name: str) -> WorkerView | None:
        """Out of quarantine. None if there is no such worker."""
        async with self._changing:
            worker = await self._store.release_worker(name)
            member = self._members.get(name)
            if worker is None or member is None:
                return None
            member.update(worker)
            return member.view()

    async def remove(self, name: str) -> None:
        """Forget the worker; gone is success. A job that it was at goes back to the queue."""
        async with self._changing:
            await self._store.remove_worker(name)
            await self._end(name, "the worker was removed")

    def views(self) -> list[WorkerView]:
        return [self._members[name].view() for name in sorted(self._members)]

    async def pools(self) -> list[PoolView]:
        """Every pool that has workers or jobs. Asks the store."""
        counts = await self._store.counts()
        pools = sorted(counts.keys() | {member.worker.pool for member in self._members.values()})
        return [
            PoolView(
                name=pool,
                workers=len(self._of(pool)),
                ready=sum(member.ready for member in self._of(pool)),
                **{state.value: counts.get(pool, {}).get(state, 0) for state in JobState},
            )
            for pool in pools
        ]

    def ready_pools(self) -> list[str]:
        """Pools that could make an image now."""
        return sorted({member.worker.pool for member in self._members.values() if member.ready})

    def takes_jobs(self, pool: str) -> bool:
        """Whether anybody is registered for the pool who is not told to drain."""
        return any(not member.worker.draining for member in self._of(pool))

    def ready_workers(self, pool: str) -> int:
        return sum(member.ready for member in self._of(pool))

    def could_make(self, pool: str, lane: Lane) -> bool:
        """Whether some worker of the pool can make what is in the lane, or has not said yet what it can."""
        members = self._of(pool)
        return not members or any(member.capability is None or lane.fits(member.capability, None) for member in members)

    def _of(self, pool: str) -> Sequence[Member]:
        return [member for member in self._members.values() if member.worker.pool == pool]

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
        )
        self._members[worker.name] = member
        return member

    async def _spills(self, member: Member) -> Sequence[Spill]:
        pool = member.worker.pool
        if not any(rule.giver == pool for rule in self._spill_rules):
            return ()
        pace = await self._paces.of(pool)
        idle_others = sum(other.idle for other in self._of(pool) if other is not member)
        return spills(self._spill_rules, pool, idle_others, pace)

    async def _end(self, name: str, why: str) -> None:
        member = self._members.pop(name, None)
        for lease in await member.stop() if member else ():
            job = await self._store.end_attempt(lease, AttemptEnd.LOST, why)
            if job is not None:
                self._queue.announce(job.pool)


def _address(worker: RegisteredWorker) -> tuple[str, str, str]:
    return worker.url, worker.token, worker.pool
