"""An event stream that has nothing to say still beats, and ends when the router is told to stop."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from router.api.context import Context
from router.api.jobs import stream
from router.api.links import Links
from router.contract import WorkerRegistration
from router.core import CoreConfig, open_core
from router.readiness import Examiner
from tests.ports import free_ports
from worker.contract import GenerationRequest


async def test_a_quiet_stream_beats_until_the_router_stops(tmp_path: Path) -> None:
    async with open_core(CoreConfig(f"sqlite+aiosqlite:///{tmp_path}/router.db", tmp_path / "artifacts")) as core:
        # Registered and not there: its jobs wait.
        nobody = WorkerRegistration(url=f"http://127.0.0.1:{free_ports(1)[0]}", token="t" * 16, pool="batch")
        await core.fleet.register("w-1", nobody)
        key = await core.store.put_api_key("default", "0" * 64)
        job = await core.service.submit(key, "batch", GenerationRequest(prompt="a", seed=1))
        context = Context(
            core,
            Links("http://x", b"k", 60),
            asyncio.Event(),
            lambda: 1,
            lambda: 0.0,
            "1",
            Examiner(core, "1", lambda: False),
        )
        async with asyncio.timeout(20), aclosing(stream(context, job, heartbeat_s=0.02)) as said:
            assert await anext(said) == "retry: 1000\n\n"
            assert (await anext(said)).startswith("event: queued\nid: 0-1-0\ndata: {")
            assert await anext(said) == ": still here\n\n"
            assert await anext(said) == ": still here\n\n"
            context.closing.set()
            assert [piece async for piece in said] == []
