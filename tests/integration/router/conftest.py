"""Cores with paced workers: one of one's own for each test, and a served router that a module shares; a store; and a
machine with the tunnels to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from router.store.sql import SqlStore
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.core_rig import Rig, rig
from tests.integration.router.served import ServedRouter, served_router
from tests.integration.router.tunnelled import Tunnels, serving
from tests.sshd import Sshd, sshd
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


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    """Short: a socket's path ends at 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="lp-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def machine(folder: Path) -> AsyncIterator[Sshd]:
    async with sshd(folder / "m") as running:
        yield running


@pytest.fixture
async def tunnels(folder: Path, machine: Sshd) -> AsyncIterator[Tunnels]:
    async with serving(folder, machine.client_key) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[PacedProcess]:
    async with paced_worker() as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(worker: PacedProcess) -> AsyncIterator[ServedRouter]:
    async with served_router(MODEL_ALIASES='{"house-style": "ideogram-4"}') as served:
        await served.use("w-1", worker)
        yield served
