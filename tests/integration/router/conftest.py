"""Cores with paced workers: one of one's own for each test, and a served router that a module shares; and a store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from router.store.sql import SqlStore
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.core_rig import Rig, rig
from tests.integration.router.served import ServedRouter, served_router
from tests.stores import SteeredClock, opened_at


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
async def store(database_url: str, clock: SteeredClock) -> AsyncIterator[SqlStore]:
    """With one worker, `a`, of the interactive pool; on the clock that the test moves."""
    async with opened_at(database_url, clock) as opened:
        await opened.put_worker("a", "http://127.0.0.1:1", "t" * 16, "interactive")
        yield opened


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path) as built:
        yield built


@pytest.fixture
async def a() -> AsyncIterator[PacedProcess]:
    async with paced_worker() as worker:
        yield worker


@pytest.fixture
async def b() -> AsyncIterator[PacedProcess]:
    async with paced_worker() as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[PacedProcess]:
    async with paced_worker() as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(worker: PacedProcess) -> AsyncIterator[ServedRouter]:
    async with served_router(MODEL_ALIASES='{"house-style": "ideogram-4"}') as served:
        await served.use("w-1", worker)
        yield served
