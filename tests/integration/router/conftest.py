"""Cores with paced workers: one of one's own for each test, and a served router that a module shares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.core_rig import Rig, rig
from tests.integration.router.served import ServedRouter, served_router


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
