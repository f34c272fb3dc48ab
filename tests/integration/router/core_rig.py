"""A core at a brisk rhythm, for tests that drive real workers over real HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from router.admission import Bounds
from router.contract import WorkerHealth, WorkerRegistration, WorkerView
from router.core import Core, CoreConfig, open_core
from router.jobs import AttemptEnd, Job
from router.store import ApiKey
from router.worker_client import Patience
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.stores import request, url
from worker.contract import GenerationRequest

POOL = "interactive"
WITHIN_S = 30.0
SLOW = Pace(step_s=0.1, heartbeat_s=0.2)
"""Two seconds an image: time enough to interfere."""


def brisk(folder: Path) -> CoreConfig:
    """Everything as in earnest, some ten times faster."""
    return CoreConfig(
        database_url=url(folder),
        artifacts_root=folder / "artifacts",
        lease_ttl_ms=3000,
        sweep_s=0.2,
        probe_s=0.2,
        probe_soon_s=0.02,
        idle_s=0.5,
        look_s=0.5,
        probation_s=0.3,
        bounds=Bounds(queue=100),
        patience=Patience(connect_s=1.0, silence_s=1.5, answer_s=1.5),
    )


async def eventually(what: Callable[[], Awaitable[bool]], why: str) -> None:
    """Poll until `what` is true; AssertionError saying `why` after half a minute."""
    deadline = time.monotonic() + WITHIN_S
    while not await what():
        assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {why}"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Rig:
    core: Core
    key: ApiKey

    async def register(self, name: str, worker: PacedProcess, token: str | None = None) -> None:
        registration = WorkerRegistration(url=worker.url, token=token or worker.token, pool=POOL)
        await self.core.fleet.register(name, registration)

    async def submit(self, asked: GenerationRequest | None = None) -> Job:
        return await self.core.service.submit(self.key, POOL, asked or request())

    async def ended(self, job: Job) -> Job:
        async with asyncio.timeout(WITHIN_S):
            return await self.core.service.wait(job.id)

    async def started(self, job: Job, worker: PacedProcess) -> None:
        """Wait until `worker` is at work on the job."""

        async def begun() -> bool:
            return any(name.startswith(job.id) for name in (await worker.ledger()).started)

        await eventually(begun, f"{job.id} never started on {worker.url}")

    def view(self, name: str) -> WorkerView:
        return next(view for view in self.core.fleet.views() if view.name == name)

    async def believed(self, name: str, health: WorkerHealth) -> None:
        """Wait until the router believes this of the worker."""

        async def believes() -> bool:
            return self.view(name).health is health

        await eventually(believes, f"{name} is not believed {health}")


@asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    async with open_core(brisk(folder)) as core:
        yield Rig(core, await core.store.put_api_key("default", "0" * 64))


async def ends(house: Rig) -> dict[AttemptEnd, int]:
    return dict((await house.core.store.attempt_counts()).get(POOL, {}))
