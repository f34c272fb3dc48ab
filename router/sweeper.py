"""Returns the jobs of expired leases to the queue, and ends what still waits at its deadline."""

from __future__ import annotations

import asyncio

import structlog

from router.notices import Notices
from router.queue import Queue
from router.store import Store

log = structlog.get_logger(__name__)


AT_ONCE = 500
"""So many overdue jobs end in one transaction: it must not keep the others from writing for long."""


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


async def keep_sweeping(store: Store, notices: Notices, queue: Queue, lease_ttl_ms: int, every_s: float) -> None:
    while True:
        await sweep(store, notices, queue, lease_ttl_ms)
        await asyncio.sleep(every_s)
