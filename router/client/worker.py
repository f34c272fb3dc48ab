"""One worker, spoken to without a router: the worker contract's other end for whoever has a single machine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
from pydantic import TypeAdapter, ValidationError

from router.client.errors import RouterAnswerError, RouterAwayError
from router.client.http import CONNECTIONS, HttpClient
from worker.contract import (
    EVENT,
    Accepted,
    Failed,
    Finished,
    GenerationRequest,
    Started,
    Step,
    WorkerStatus,
)

_STATUS = TypeAdapter(WorkerStatus)

Event = Accepted | Started | Step | Finished | Failed


class WorkerClient(HttpClient):
    """Speaks to the worker at `base_url` (on loopback, or the near end of a forward). Raises as RouterClient does."""

    whom = "the worker"

    def __init__(
        self,
        base_url: str,
        token: str,
        transport: httpx.AsyncBaseTransport | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        super().__init__(base_url, token, transport, connections)

    async def status(self) -> WorkerStatus:
        """Of one that is ready; RouterUnavailableError says why it is not."""
        return await self._read(_STATUS, "GET", "/readyz")

    async def generate(self, generation_id: str, request: GenerationRequest) -> AsyncIterator[Event]:
        """Start or join this generation; its events, to its Finished or Failed one, which comes last."""
        path = f"/generations/{generation_id}"
        async with self._open("PUT", path, request.model_dump(mode="json")) as stream:
            async for line in stream.aiter_lines():
                if not line.strip():
                    continue  # a heartbeat
                try:
                    event = EVENT.validate_json(line)
                except ValidationError as error:
                    raise RouterAnswerError(f"{self._name('PUT', path)}: not the worker contract: {error}") from error
                yield event
                if isinstance(event, Finished | Failed):
                    return
        raise RouterAwayError(f"{self._name('PUT', path)}: the stream broke off before its end")

    async def image(self, generation_id: str) -> bytes:
        """The finished image. RouterNotFoundError, or RouterRefusedError with 410, once it is no more."""
        return (await self._call("GET", f"/generations/{generation_id}/image")).content
