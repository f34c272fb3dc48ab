"""Returns the jobs of expired leases to the queue: whoever held them has been silent for too long."""

from __future__ import annotations

import asyncio

import structlog

from router.jobs import Job
from router.notices import Notices
from router.queue import Queue
from router.store import Store

log = structlog.get_logger(__name__)


async def sweep(store: Store, notices: Notices, queue: Queue) -> None:
    """Once."""
    for job in await store.sweep():
        _tell(job, notices, queue)


async def keep_sweeping(store: Store, notices: Notices, queue: Queue, every_s: float) -> None:
    while True:
        await sweep(store, notices, queue)
        await asyncio.sleep(every_s)


def _tell(job: Job, notices: Notices, queue: Queue) -> None:
    log.warning("lease_expired", job=job.id, attempt=job.attempt, state=job.state.value)
    notices.publish(job)
    queue.announce(job.pool)
