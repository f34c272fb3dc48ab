"""Puts the core together and takes it apart: store, queue, fleet, sweeper, service.

No HTTP of its own: `router.app` and `router.admin` stand on `Core`. A core that stands alone drives its workers
itself. With a broker (`Shared`), a router accepts, waits and answers, and consumers (`router.consume`) drive; they
share a database, the artifacts and a Redis.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from router.admission import Admission, Bounds
from router.artifacts import MARK, Artifacts
from router.artifacts.belonging import belong
from router.artifacts.local import LocalArtifacts
from router.artifacts.s3 import Bucket, S3Artifacts
from router.callers import Callers
from router.dispatch import Dispatcher
from router.fleet import Fleet
from router.fleet.driven import DrivenFleet, keep_reporting
from router.fleet.seen import SeenFleet
from router.fronts import Silences, present
from router.member import Rhythm
from router.notices import Notices, keep_looking
from router.outlook import Outlooks
from router.paces import Paces
from router.queue import Queue
from router.queue.embedded import EmbeddedQueue
from router.recent import RecentImages
from router.retention import Retention, keep_collecting, keep_forgetting
from router.service import JobService
from router.spill import SpillRule
from router.store import ROUTER, Store
from router.store.sql import SqlStore
from router.supervise import forever
from router.sweeper import keep_sweeping
from router.unmade import Unmade
from router.worker_client import Patience

if TYPE_CHECKING:
    from celery import Celery

    from router.notices.redis import RedisNotices
    from router.queue.celery import CeleryQueue


RECENT_BYTES = 64 * 2**20
"""Of images that were just stored, kept for those who wait for them."""
FRONT_BYTES = 16


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What the core needs to know. Times are in the unit that ends their name."""

    database_url: str
    artifacts_root: Path
    bucket: Bucket | None = None
    """Where images are kept instead of under `artifacts_root`, for more than one router host."""
    lease_ttl_ms: int = 15_000
    """A lease is renewed three times in this; after it, a job whose router died is given to another worker."""
    sweep_s: float = 5.0
    """How often what has expired is looked for; and how often a front beats (`router.fronts`)."""
    front_looks: int = 12
    """A front that has not beaten between so many looks, `sweep_s` apart, is dead."""
    probe_s: float = 2.0
    probe_soon_s: float = 0.1
    idle_s: float = 2.0
    ahead_s: float = 0.3
    """How long before its predicted end a running generation gets a successor; 0: only after it."""
    probation_s: float = 30.0
    reconcile_s: float = 2.0
    """How often a process that drives looks whether others have changed the register of workers."""
    look_s: float = 2.0
    bounds: Bounds = field(default_factory=Bounds)
    retention: Retention = field(default_factory=Retention)
    spill_rules: tuple[SpillRule, ...] = ()
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class Shared:
    """What cores that stand together have besides the database and the artifacts. `redis_url` may hold a password."""

    redis_url: str
    report_s: float = 2.0
    """How often those who drive write down what they believe of their workers, and those who do not read it."""

    def __repr__(self) -> str:
        return "Shared(…)"


@dataclass(frozen=True, slots=True)
class Core:
    store: Store
    service: JobService
    fleet: Fleet
    notices: Notices
    artifacts: Artifacts
    callers: Callers


@dataclass(frozen=True, slots=True)
class Consumer:
    """A core that drives workers for routers elsewhere."""

    store: Store
    fleet: DrivenFleet
    queue: CeleryQueue
    app: Celery


@asynccontextmanager
async def open_core(config: CoreConfig) -> AsyncIterator[Core]:
    """A core at work that stands alone. At the start, attempts that an earlier router left running are joined; at
    the end, those that run are left for the next one.

    Raises StoreUnavailableError if the database cannot be opened, ArtifactError if the artifact store cannot be
    used or is not this database's.
    """
    async with _founded(config) as (store, artifacts):
        queue, notices, recent = EmbeddedQueue(), Notices(), RecentImages(RECENT_BYTES)
        dispatcher = Dispatcher(store, artifacts, notices, queue, config.lease_ttl_ms, recent)
        paces = Paces(store, monotonic)
        fleet = _driven(config, store, queue, dispatcher, paces, ROUTER)
        admission = _admission(config, store, fleet, paces)
        front = secrets.token_hex(FRONT_BYTES)
        service = JobService(store, queue, notices, artifacts, fleet, admission, recent, front)
        await fleet.start()
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "sweeper": partial(
                keep_sweeping, store, notices, queue, config.lease_ttl_ms, config.sweep_s, _silences(config)
            ),
            "look": partial(keep_looking, notices, store, config.look_s),
            "unmade": Unmade(store, fleet, config.spill_rules, notices, monotonic).keep_looking,
            **_forgetting(config.retention, store, artifacts),
            "register": partial(fleet.keep_up, config.reconcile_s),
        }
        try:
            async with present(store.fronts, front, config.sweep_s), _kept(loops):
                yield Core(store, service, fleet, notices, artifacts, Callers(store, monotonic))
        finally:
            await fleet.stop()


@asynccontextmanager
async def open_front(config: CoreConfig, shared: Shared) -> AsyncIterator[Core]:
    """A core that drives no worker: consumers do. Raises as `open_core` does; without Redis it only is slower."""
    async with _founded(config) as (store, artifacts), _joined(store, shared) as (app, notices):
        from router.queue.celery import CeleryQueue  # noqa: PLC0415

        queue, fleet = CeleryQueue(app), SeenFleet(store, partial(datetime.now, UTC))
        paces = Paces(store, monotonic)
        admission = _admission(config, store, fleet, paces)
        front = secrets.token_hex(FRONT_BYTES)
        service = JobService(store, queue, notices, artifacts, fleet, admission, RecentImages(0), front)
        await fleet.look()
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "sweeper": partial(
                keep_sweeping, store, notices, queue, config.lease_ttl_ms, config.sweep_s, _silences(config)
            ),
            "look": partial(keep_looking, notices, store, config.look_s),
            "unmade": Unmade(store, fleet, config.spill_rules, notices, monotonic).keep_looking,
            **_forgetting(config.retention, store, artifacts),
            "workers": partial(fleet.keep_looking, shared.report_s / 2),
        }
        try:
            async with present(store.fronts, front, config.sweep_s), _kept(loops):
                yield Core(store, service, fleet, notices, artifacts, Callers(store, monotonic))
        finally:
            await asyncio.to_thread(queue.close)


@asynccontextmanager
async def open_consumer(config: CoreConfig, shared: Shared, name: str) -> AsyncIterator[Consumer]:
    """A core that drives workers and answers nobody. `name` is its own among all consumers: what it held when it
    last ended, however that was, it joins."""
    async with _founded(config) as (store, artifacts), _joined(store, shared) as (app, notices):
        from router.queue.celery import CeleryQueue  # noqa: PLC0415

        queue = CeleryQueue(app)
        nobody_reads_here = RecentImages(0)
        dispatcher = Dispatcher(store, artifacts, notices, queue, config.lease_ttl_ms, nobody_reads_here)
        fleet = _driven(config, store, queue, dispatcher, Paces(store, monotonic), name)
        await fleet.start()
        loops = {
            "sweeper": partial(
                keep_sweeping, store, notices, queue, config.lease_ttl_ms, config.sweep_s, _silences(config)
            ),
            "register": partial(fleet.keep_up, config.reconcile_s),
            "report": partial(keep_reporting, store, fleet, shared.report_s),
        }
        try:
            async with _kept(loops):
                yield Consumer(store, fleet, queue, app)
        finally:
            await fleet.stop()
            await asyncio.to_thread(queue.close)


@asynccontextmanager
async def _founded(config: CoreConfig) -> AsyncIterator[tuple[Store, Artifacts]]:
    store = await SqlStore.open(config.database_url)
    try:
        artifacts = _artifacts(config)
        await belong(store, artifacts)
        yield store, artifacts
    finally:
        await store.close()


@asynccontextmanager
async def _joined(store: Store, shared: Shared) -> AsyncIterator[tuple[Celery, RedisNotices]]:
    """Redis, under a name that no other database's routers use: what the artifacts are marked with."""
    # Only those who are told to use Redis and Celery have them in their memory.
    from router.notices.redis import RedisNotices  # noqa: PLC0415
    from router.queue.celery import Broker, celery_app  # noqa: PLC0415

    ours = f"letterpress:{(await store.fact(MARK) or '')[:12]}:"
    notices = RedisNotices(shared.redis_url, f"{ours}notices", store)
    notices.start()
    try:
        yield celery_app(Broker(shared.redis_url, ours)), notices
    finally:
        await notices.stop()


@asynccontextmanager
async def _kept(loops: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(forever(name, loop)) for name, loop in loops.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _forgetting(
    retention: Retention, store: Store, artifacts: Artifacts
) -> Mapping[str, Callable[[], Awaitable[None]]]:
    return {
        "retention": partial(keep_forgetting, store, artifacts, retention.every_s, retention.keep_s),
        "collection": partial(keep_collecting, store, artifacts, retention.collect_s, retention.grace_s),
    }


def _driven(
    config: CoreConfig, store: Store, queue: Queue, dispatcher: Dispatcher, paces: Paces, driver: str
) -> DrivenFleet:
    rhythm = Rhythm(
        config.lease_ttl_ms, config.probe_s, config.probe_soon_s, config.idle_s, config.ahead_s, config.probation_s
    )
    now = partial(datetime.now, UTC)
    return DrivenFleet(store, queue, dispatcher, rhythm, config.patience, now, paces, config.spill_rules, driver=driver)


def _silences(config: CoreConfig) -> Silences:
    return Silences(config.front_looks)


def _admission(config: CoreConfig, store: Store, fleet: Fleet, paces: Paces) -> Admission:
    return Admission(store, fleet, Outlooks(store, paces, fleet.ready_workers, monotonic), config.bounds)


def _artifacts(config: CoreConfig) -> Artifacts:
    return LocalArtifacts(config.artifacts_root) if config.bucket is None else S3Artifacts(config.bucket)
