"""A router with a batch worker, that a module shares, and OpenAI's client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest_asyncio

from tests.emulators.paced_process import PacedProcess
from tests.integration.router.openai_batches import QUICK, client_of
from tests.integration.router.served import ServedRouter, served_router


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(worker: PacedProcess) -> AsyncIterator[ServedRouter]:
    async with served_router(WEBHOOK_ALLOW="127.0.0.1") as served:
        await served.use("b-1", worker, "batch")
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(router: ServedRouter, worker: PacedProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    await worker.pace(QUICK)
    async with client_of(router) as client:
        yield client
