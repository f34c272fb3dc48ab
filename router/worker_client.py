"""The router's end of the worker contract: one worker, over loopback HTTP or a unix socket.

Only speaks and translates: every way in which a worker can fail becomes one of the WorkerErrors in
`router.errors`. What is done about it is decided in `router.dispatch` and `router.fleet`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import httpx
from pydantic import BaseModel, ValidationError

from router.errors import (
    WorkerBusyError,
    WorkerProtocolError,
    WorkerRefusedError,
    WorkerSilentError,
    WorkerUnauthorizedError,
    WorkerUnavailableError,
    WorkerUnreachableError,
)
from worker.contract import (
    CONTRACT_VERSION,
    EVENT,
    Accepted,
    Failed,
    Finished,
    GenerationRequest,
    Problem,
    ProblemType,
    Started,
    Step,
    WorkerStatus,
)

Event = Accepted | Started | Step | Finished | Failed

NO_GENERATION = "router.0"
"""Well formed and never begun: jobs have longer names, and attempts count from 1."""


class _Spoken(BaseModel):
    """The one field that every version of a worker's status has."""

    contract: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker may take, in seconds, before it counts as gone."""

    connect_s: float = 5.0
    silence_s: float = 20.0
    """Between two bytes of a generation's stream: a worker sends an empty line every few seconds."""
    answer_s: float = 10.0
    """For everything that is not a stream."""


class WorkerClient:
    """`url` is `http://127.0.0.1:PORT` or `unix:/path`. To be closed by whoever made it."""

    def __init__(self, name: str, url: str, token: str, patience: Patience) -> None:
        self.name = name
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._patience = patience
        self._http = httpx.AsyncClient(
            base_url="http://worker" if socket else url,
            # No TLS on loopback; reading the system's certificates would take 60 ms a worker.
            transport=httpx.AsyncHTTPTransport(uds=socket, verify=False),
            # ASCII, the default, would raise here for a stored token beyond it, and stop the whole router.
            headers=httpx.Headers({"Authorization": f"Bearer {token}"}, encoding="utf-8"),
            timeout=httpx.Timeout(patience.answer_s, connect=patience.connect_s),
            trust_env=False,  # a proxy is no way to a worker
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def status(self) -> WorkerStatus:
        """What /readyz says, ready or not. Raises WorkerUnreachableError, WorkerProtocolError."""
        async with self._speaking("asked whether it is ready"):
            answer = await self._http.get("/readyz")
        if answer.status_code not in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):
            raise self._not_the_contract(f"/readyz answered {answer.status_code}")
        try:
            spoken = _Spoken.model_validate_json(answer.content)
            if spoken.contract == CONTRACT_VERSION:
                # What a newer worker of the same contract adds is nothing that we would need.
                return WorkerStatus.model_validate_json(answer.content, extra="ignore")
        except ValidationError as error:
            raise self._not_the_contract("/readyz is no WorkerStatus") from error
        raise WorkerProtocolError(
            f"worker {self.name}: speaks version {spoken.contract} of the worker contract, this router version "
            f"{CONTRACT_VERSION}; deploy both from one release"
        )

    async def generate(self, generation_id: str, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Start or join the generation and follow it to its Finished or Failed event, which comes last.

        Raises any WorkerError. To be closed early with `aclose` (contextlib.aclosing); that does not
        cancel the generation.
        """
        stream = self._http.stream(
            "PUT",
            f"/generations/{generation_id}",
            content=request.model_dump_json(),
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(
                self._patience.answer_s, connect=self._patience.connect_s, read=self._patience.silence_s
            ),
        )
        async with self._speaking(f"generating {generation_id}"), stream as answer:
            if answer.status_code != HTTPStatus.OK:
                await answer.aread()
                self._raise_for(answer)
            async for line in answer.aiter_lines():
                if not line.strip():
                    continue  # a heartbeat
                event = self._event(generation_id, line)
                yield event
                if isinstance(event, Finished | Failed):
                    return
        raise WorkerUnreachableError(f"worker {self.name}: the stream of {generation_id} broke off before its end")

    async def image(self, generation_id: str) -> bytes:
        """The finished image. Raises any WorkerError."""
        async with self._speaking(f"fetching the image of {generation_id}"):
            answer = await self._http.get(f"/generations/{generation_id}/image")
        if answer.status_code != HTTPStatus.OK:
            self._raise_for(answer)
        return answer.content

    async def cancel(self, generation_id: str) -> None:
        """Ask it to stop between steps; gone is success. Raises any WorkerError."""
        async with self._speaking(f"cancelling {generation_id}"):
            answer = await self._http.delete(f"/generations/{generation_id}")
        if not answer.is_success and answer.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            self._raise_for(answer)

    async def check_token(self) -> None:
        """Whether the worker takes our token, asked in a way that changes nothing. Raises any WorkerError."""
        await self.cancel(NO_GENERATION)

    @asynccontextmanager
    async def _speaking(self, doing: str) -> AsyncIterator[None]:
        try:
            yield
        except httpx.ReadTimeout as error:
            raise WorkerSilentError(f"worker {self.name}: was silent for too long, {doing}") from error
        except httpx.HTTPError as error:
            raise WorkerUnreachableError(
                f"worker {self.name}: the connection failed, {doing}: {str(error) or type(error).__name__}"
            ) from error

    def _event(self, generation_id: str, line: str) -> Event:
        try:
            event = EVENT.validate_json(line)
        except ValidationError as error:
            raise self._not_the_contract(f"its stream says {line[:200]!r}") from error
        if event.id != generation_id:
            raise self._not_the_contract(f"the stream of {generation_id} speaks of {event.id}")
        return event

    def _raise_for(self, answer: httpx.Response) -> None:
        try:
            problem = Problem.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._not_the_contract(f"it answered {answer.status_code} without a Problem") from error
        said = f"worker {self.name}: {'; '.join((problem.detail, *problem.errors))}"
        match problem.type:
            case ProblemType.BUSY:
                raise WorkerBusyError(said)
            case ProblemType.NOT_READY:
                raise WorkerUnavailableError(said)
            case ProblemType.UNAUTHORIZED:
                raise WorkerUnauthorizedError(f"{said}; register it again with its own token")
            case ProblemType.INVALID_REQUEST:
                raise WorkerRefusedError(said)
            case _:
                raise self._not_the_contract(f"{problem.status} {problem.type}: {problem.detail}")

    def _not_the_contract(self, what: str) -> WorkerProtocolError:
        return WorkerProtocolError(f"worker {self.name}: not the worker contract (version {CONTRACT_VERSION}): {what}")
