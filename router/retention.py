"""Forgets jobs that ended long ago, requests that may no longer be repeated, and images that no job names.

Rows go first and images later: a router that dies between the two leaves images that nobody names, which is what
the next collection looks for. An image is stored before its job names it, so one that is young is left alone,
whoever names it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from router.artifacts import Artifacts
from router.store import Store

log = structlog.get_logger(__name__)

AT_ONCE = 500
"""Jobs that are forgotten in one transaction: it must not keep the others from writing for long."""
LINES_AT_ONCE = 20_000
"""Lines of ended batches that are forgotten in one transaction."""
REPEATABLE_S = 86_400
"""How long a request may be repeated under its Idempotency-Key."""


@dataclass(frozen=True, slots=True)
class Retention:
    """`keep_s` seconds after their end, jobs and their images go; None: never. `grace_s` is how old an image must be
    that no job names, and must be far longer than a job takes to be committed. `every_s` lies between two looks at
    the jobs, `collect_s` between two at all images."""

    keep_s: float | None = None
    grace_s: float = 86_400.0
    every_s: float = 600.0
    collect_s: float = 6 * 3600.0


async def forget(store: Store, keep_s: float | None) -> int:
    """Once. How many jobs it were."""
    await store.forget_repetitions(REPEATABLE_S * 1000)
    forgotten = 0
    while keep_s is not None:
        some = await store.forget_jobs(int(keep_s * 1000), AT_ONCE)
        forgotten += some
        if some < AT_ONCE:
            break
    if forgotten:
        log.info("jobs_forgotten", jobs=forgotten)
    return forgotten


async def forget_batches(store: Store, artifacts: Artifacts, keep_s: float | None) -> None:
    """Once: expired files, lines of ended batches, and batches that ended longer ago than jobs are kept."""
    older_ms = None if keep_s is None else int(keep_s * 1000)
    paths = await store.batches.forget(older_ms, LINES_AT_ONCE)
    await artifacts.remove(paths)
    if paths:
        log.info("files_forgotten", files=len(paths))


async def collect(store: Store, artifacts: Artifacts, grace_s: float) -> int:
    """Remove the images that no job names, once. How many it were."""
    removed = 0
    async for paths in artifacts.older_than(grace_s):
        named = await store.named_images(paths)
        garbage = [path for path in paths if path not in named]
        await artifacts.remove(garbage)
        removed += len(garbage)
    if removed:
        log.info("images_removed", images=removed)
    return removed


async def keep_forgetting(store: Store, artifacts: Artifacts, every_s: float, keep_s: float | None) -> None:
    while True:
        await forget(store, keep_s)
        await forget_batches(store, artifacts, keep_s)
        await asyncio.sleep(every_s)


async def keep_collecting(store: Store, artifacts: Artifacts, every_s: float, grace_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)  # not at the start: a router that comes and goes would do little else
        await collect(store, artifacts, grace_s)
