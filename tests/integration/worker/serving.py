"""The worker's app on a real port of this process, over an engine that a test scripts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from tests.unit.worker.scripted import DESCRIPTION, ScriptedEngine
from worker.app import create_app
from worker.contract import EVENT, Accepted, Failed, Finished, GenerationRequest, Started, Step
from worker.metrics import Metrics
from worker.runner import Limits, Runner

TOKEN = "a-token-for-these-tests"
EventType = Accepted | Started | Step | Finished | Failed


@dataclass(frozen=True, slots=True)
class Served:
    runner: Runner
    engine: ScriptedEngine
    http: httpx.AsyncClient
    """Carries the token; its address is the server's."""

    async def put(self, generation_id: str, request: GenerationRequest) -> list[EventType]:
        """Every event to the end of the stream, heartbeats left out."""
        async with self.http.stream(
            "PUT", f"/generations/{generation_id}", content=request.model_dump_json()
        ) as response:
            assert response.status_code == 200, await response.aread()
            return [EVENT.validate_json(line) async for line in response.aiter_lines() if line]


@asynccontextmanager
async def served(
    engine: ScriptedEngine, *, load: bool = True, heartbeat_s: float = 5.0, clock_keep_s: float = 600.0
) -> AsyncIterator[Served]:
    """Listening, and loaded unless told otherwise; nothing is left when the block ends."""
    metrics = Metrics()
    runner = Runner(
        lambda: engine,
        DESCRIPTION,
        clock=asyncio.get_running_loop().time,
        observer=metrics,
        limits=Limits(keep_finished_s=clock_keep_s),
    )
    metrics.follow(runner.status, lambda: runner.kept.bytes)
    app = create_app(runner, metrics, TOKEN, heartbeat_s=heartbeat_s)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server._serve([listener]))  # serve() would take the process's signals
    if load:
        assert await runner.load() is None
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            limits=limits,
            timeout=30,
            trust_env=False,
        ) as http:
            yield Served(runner, engine, http)
    finally:
        server.should_exit = True
        await serving
        runner.close()
        listener.close()
