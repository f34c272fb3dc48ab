"""Puts the core together and takes it apart: store, queue, fleet, sweeper, service.

No HTTP of its own: `router.app` and `router.admin` stand on `Core`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic

from router.admission import Admission, Bounds
from router.artifacts import Artifacts
from router.artifacts.belonging import belong
from router.artifacts.local import LocalArtifacts
from router.artifacts.s3 import Bucket, S3Artifacts
from router.dispatch import Dispatcher
from router.fleet import Fleet
from router.member import Rhythm
from router.notices import Notices
from router.outlook import Outlooks
from router.paces import Paces
from router.queue import EmbeddedQueue
from router.service import JobService
from router.spill import SpillRule
from router.store import Store
from router.store.sql import SqlStore
from router.supervise import forever
from router.sweeper import keep_sweeping, sweep
from router.worker_client import Patience


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
    probe_s: float = 2.0
    probe_soon_s: float = 0.1
    idle_s: float = 2.0
    ahead_s: float = 0.3
    """How long before its predicted end a running generation gets a successor; 0: only after it."""
    probation_s: float = 30.0
    look_s: float = 2.0
    bounds: Bounds = field(default_factory=Bounds)
    spill_rules: tuple[SpillRule, ...] = ()
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True)
class Core:
    store: Store
    service: JobService
    fleet: Fleet
    notices: Notices
    artifacts: Artifacts


@asynccontextmanager
async def open_core(config: CoreConfig) -> AsyncIterator[Core]:
    """A core at work. At the start, attempts that an earlier router left running are joined; at the end,
    those that run are left for the next one.

    Raises StoreUnavailableError if the database cannot be opened, ArtifactError if the artifact store cannot be
    used or is not this database's.
    """
    store = await SqlStore.open(config.database_url)
    try:
        queue, notices = EmbeddedQueue(), Notices()
        artifacts = _artifacts(config)
        await belong(store, artifacts)
        dispatcher = Dispatcher(store, artifacts, notices, queue, config.lease_ttl_ms)
        rhythm = Rhythm(
            config.lease_ttl_ms, config.probe_s, config.probe_soon_s, config.idle_s, config.ahead_s, config.probation_s
        )
        paces = Paces(store, monotonic)
        fleet = Fleet(
            store, queue, dispatcher, rhythm, config.patience, partial(datetime.now, UTC), paces, config.spill_rules
        )
        service = JobService(
            store,
            queue,
            notices,
            artifacts,
            dispatcher,
            fleet,
            Admission(store, fleet, Outlooks(store, paces, fleet.ready_workers, monotonic), config.bounds),
            look_s=config.look_s,
        )
        await sweep(store, notices, queue)
        await fleet.start()
        sweeper = asyncio.create_task(forever("sweeper", partial(keep_sweeping, store, notices, queue, config.sweep_s)))
        try:
            yield Core(store, service, fleet, notices, artifacts)
        finally:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)
            await fleet.stop()
    finally:
        await store.close()


def _artifacts(config: CoreConfig) -> Artifacts:
    return LocalArtifacts(config.artifacts_root) if config.bucket is None else S3Artifacts(config.bucket)
