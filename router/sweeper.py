"""Returns the jobs of expired leases to the queue, ends what still waits at its deadline, and what waits for the open
requests of a router that has died."""

from __future__ import annotations

import asyncio

import structlog

from router.errors import StoreUnavailableError
from router.fronts import Silences
from router.notices import Notices
from router.queue import Queue
from router.store import Store

log = structlog.get_logger(__name__)


AT_ONCE = 500
"""So many overdue jobs end in one transaction: it must not keep the others from writing for long."""
STORE_PAUSE_S = 1.0
"""Between two tries to write to a database that took nothing."""


async def sweep(store: Store, notices: Notices, queue: Queue, lease_ttl_ms: int) -> None:
    """Once. `lease_ttl_ms` is how long everybody's leases run."""
    if shortened := await store.shorten_leases(lease_ttl_ms):
        log.warning("clock_set_back", leases=shortened)
    for job in await store.sweep():
        log.warning("lease_expired", job=job.id, attempt=job.attempt, state=job.state.value)
        notices.publish(job)
        queue.announce(job.pool)
    while True:
        overdue = await store.expire(AT_ONCE)
        for job in overdue:
            log.info("deadline_passed", job=job.id)
            notices.publish(job)
        if len(overdue) < AT_ONCE:
            return


async def let_go(store: Store, notices: Notices, silences: Silences) -> None:
    """Of what fronts that have died left behind, which nobody waits for any more."""
    beats = await store.fronts.beats()
    for front in silences.look(beats):
        log.warning("front_died", front=front)
        done = False
        while not done:
            settled = await store.fronts.settle(front, beats[front], AT_ONCE, cancel_repeatable=True)
            for job in settled.cancelled:
                log.info("nobody_waits", job=job.id)
                notices.publish(job)
            done = settled.done


async def keep_sweeping(
    store: Store, notices: Notices, queue: Queue, lease_ttl_ms: int, every_s: float, silences: Silences
) -> None:
    """Nobody's lease is taken for what kept everybody from renewing it. While the database took nothing, nobody could
    (so each round begins with a small write: one that finds nothing to sweep writes nothing), and while this process
    stood still, what it drives did, too. After either, who is alive has a lease's length to renew."""
    loop = asyncio.get_running_loop()
    while True:
        slept_at = loop.time()
        await asyncio.sleep(every_s)
        stood_still = loop.time() - slept_at > 2 * every_s
        try:
            if stood_still:
                silences.anew()
                log.warning("stood_still", for_s=round(loop.time() - slept_at, 1), sweeping_in_s=lease_ttl_ms / 1000)
                await asyncio.sleep(lease_ttl_ms / 1000)
            await store.check_writes()
            await sweep(store, notices, queue, lease_ttl_ms)
            await let_go(store, notices, silences)
        except StoreUnavailableError as error:
            silences.anew()
            log.error("store_unavailable", loop="sweeper", error=str(error))  # noqa: TRY400 - its trace says no more
            await _writable(store)
            log.info("store_is_back", sweeping_in_s=lease_ttl_ms / 1000)
            await asyncio.sleep(lease_ttl_ms / 1000)


async def _writable(store: Store) -> None:
    while True:
        await asyncio.sleep(STORE_PAUSE_S)
        try:
            await store.check_writes()
        except StoreUnavailableError:
            continue
        return
