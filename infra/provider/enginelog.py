"""Tells the Pulumi engine which stage a resource is in; it passes that on as an event of the resource."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

from infra.hosts import Progress


class EngineLog:
    """Speaks to the engine at `address` (`host:port`), which it gave us as its first argument."""

    def __init__(self, address: str) -> None:
        self._engine = engine_pb2_grpc.EngineStub(grpc.aio.insecure_channel(address))

    @asynccontextmanager
    async def stages(self, urn: str) -> AsyncIterator[Progress]:
        """A Progress for the resource `urn`. Stages arrive in order; one that repeats the last is not sent."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        sender = asyncio.create_task(self._send(urn, queue))
        try:
            yield queue.put_nowait
        finally:
            queue.put_nowait(None)
            await sender

    async def _send(self, urn: str, queue: asyncio.Queue[str | None]) -> None:
        last = ""
        while (stage := await queue.get()) is not None:
            if stage == last:
                continue
            last = stage
            request = engine_pb2.LogRequest(severity=engine_pb2.INFO, message=stage, urn=urn, ephemeral=True)
            try:
                await self._engine.Log(request)
            except grpc.aio.AioRpcError:
                return  # an engine that goes away needs no more news; what we do goes on without them
