"""An event stream with nothing to say still beats, tells what goes wrong, and ends when the router is told to stop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path

from router.api.context import Context
from router.api.image_stream import streamed
from router.api.jobs import stream
from router.api.links import Links
from router.api.waiting import Taken
from router.contract import WorkerRegistration
from router.core import CoreConfig, open_core
from router.jobs import Job
from router.readiness import Examiner
from router.store import ApiKey
from tests.ports import free_ports
from tests.stores import IMAGE, NO_TIME
from worker.contract import GenerationRequest


@asynccontextmanager
async def waiting(folder: Path) -> AsyncIterator[tuple[Context, ApiKey, Job]]:
    """A job that waits for a worker which is registered and not there."""
    async with open_core(CoreConfig(f"sqlite+aiosqlite:///{folder}/router.db", folder / "artifacts")) as core:
        nobody = WorkerRegistration(url=f"http://127.0.0.1:{free_ports(1)[0]}", token="t" * 16, pool="batch")
        await core.fleet.register("w-1", nobody)
        key = await core.store.put_api_key("default", "0" * 64)
        job = await core.service.submit(key, "batch", GenerationRequest(prompt="a", seed=1))
        examiner = Examiner(core, "1", lambda: False)
        links = Links("http://x", b"k", 60)
        yield Context(core, links, asyncio.Event(), lambda: 1, lambda: 0.0, "1", examiner), key, job


async def test_a_quiet_stream_beats_until_the_router_stops(tmp_path: Path) -> None:
    async with (
        waiting(tmp_path) as (context, _, job),
        asyncio.timeout(20),
        aclosing(stream(context, job, heartbeat_s=0.02)) as said,
    ):
        assert await anext(said) == "retry: 1000\n\n"
        assert (await anext(said)).startswith("event: queued\nid: 0-1-0\ndata: {")
        assert await anext(said) == ": still here\n\n"
        assert await anext(said) == ": still here\n\n"
        context.closing.set()
        assert [piece async for piece in said] == []


async def images(context: Context, key: ApiKey, job: Job) -> bytes:
    """All that OpenAI's stream says, but for its comments."""
    async with (
        asyncio.timeout(20),
        aclosing(
            streamed(context, Taken(context, key, "batch", (job.id,), None, joined=False, wanted=()), None)
        ) as said,
    ):
        return b"".join([piece async for piece in said if not piece.startswith(b":")])


async def test_an_image_that_is_lost_before_it_is_sent_is_an_error_event(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (context, key, job):
        lease = await context.core.store.lease_next("w-1", 60_000)
        assert lease is not None
        assert await context.core.store.finish(lease, IMAGE, NO_TIME)
        said = await images(context, key, job)
    assert said.startswith(b"event: error\ndata: {")
    assert b"artifact store" in said
    assert said.endswith(b"\n\n")


async def test_a_store_that_fails_while_a_stream_begins_is_an_error_event(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (context, key, job):
        with closing(sqlite3.connect(tmp_path / "router.db", isolation_level=None)) as beside:
            beside.execute("ALTER TABLE jobs RENAME TO elsewhere")
            try:
                said = await images(context, key, job)
            finally:
                beside.execute("ALTER TABLE elsewhere RENAME TO jobs")
    assert said.startswith(b"event: error\ndata: {")
    assert b"store does not answer" in said
