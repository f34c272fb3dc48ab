"""The router's end of the worker contract: one worker, over loopback HTTP or a unix socket.

Only speaks and translates: every way in which a worker can fail becomes one of the WorkerErrors in
`router.errors`. What is done about it is decided in `router.dispatch` and `router.fleet`.

Every job passes here twice, event by event, so this hop alone is spoken by aiohttp, whose parser is compiled
(docs/adr/0022-the-hop-to-a-worker.md).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
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
    EVENTS_AND_IMAGE_MEDIA_TYPE,
    WITH_IMAGE,
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


GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
LATE = 1.5
"""A silence that is noticed after so many times of what is borne was noticed by a process that stood still itself."""
READ_AHEAD_BYTES = 2**20
"""Of an answer that nobody has asked for yet: a usual image comes without a pause."""
END_OF_STREAM_S = 0.1
"""How long the end of a stream is waited for after its last event. With it the connection serves the image too:
over a tunnel, a new one costs a journey there and back."""


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


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An image as it came, with the digest of what came (SHA-256 in hex)."""

    data: bytes
    sha256: str


class WorkerClient:
    """`url` is `http://127.0.0.1:PORT` or `unix:/path`. To be closed by whoever made it."""

    def __init__(self, name: str, url: str, token: str, patience: Patience) -> None:
        self.name = name
        self._url = "http://worker" if url.startswith("unix:") else url
        self._socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._headers = {"Authorization": f"Bearer {token}"}
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> WorkerStatus:
        """What /readyz says, ready or not. Raises WorkerUnreachableError, WorkerProtocolError."""
        async with self._speaking("asked whether it is ready"):
            code, content = await self._ask("GET", "/readyz")
        if code not in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):
            raise self._not_the_contract(f"/readyz answered {code}")
        try:
            spoken = _Spoken.model_validate_json(content)
            if spoken.contract == CONTRACT_VERSION:
                # What a newer worker of the same contract adds is nothing that we would need.
                return WorkerStatus.model_validate_json(content, extra="ignore")
        except ValidationError as error:
            raise self._not_the_contract("/readyz is no WorkerStatus") from error
        raise WorkerProtocolError(
            f"worker {self.name}: speaks version {spoken.contract} of the worker contract, this router version "
            f"{CONTRACT_VERSION}; deploy both from one release"
        )

    async def generate(self, generation_id: str, request: GenerationRequest) -> AsyncGenerator[Event | FetchedImage]:
        """Start or join the generation and follow it to its Finished or Failed event. Last comes the finished image, if
        the worker sends it along and it has come whole; otherwise `image` fetches it.

        Raises any WorkerError. To be closed early with `aclose` (contextlib.aclosing); that does not
        cancel the generation.
        """
        begun = self._session_now().put(
            f"/generations/{generation_id}",
            params={WITH_IMAGE: "true"},
            data=request.model_dump_json(),
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._patience.connect_s, sock_read=self._patience.silence_s
            ),
        )
        async with self._speaking(f"generating {generation_id}"), begun as answer:
            if answer.status != HTTPStatus.OK:
                self._raise_for(answer.status, await answer.read())
            async with aclosing(self._lines(answer)) as lines:
                async for line in lines:
                    if not line.strip():
                        continue  # a heartbeat
                    event = self._event(generation_id, line)
                    if not isinstance(event, Finished | Failed):
                        yield event
                    elif isinstance(event, Finished) and answer.content_type == EVENTS_AND_IMAGE_MEDIA_TYPE:
                        yield event
                        if image := await _image_behind(answer, event.bytes):
                            yield image
                        return
                    else:
                        await _to_its_end(answer)
                        yield event
                        return
        raise WorkerUnreachableError(f"worker {self.name}: the stream of {generation_id} broke off before its end")

    async def image(self, generation_id: str) -> FetchedImage:
        """The finished image. Raises any WorkerError."""
        asked = self._session_now().get(f"/generations/{generation_id}/image")
        async with self._speaking(f"fetching the image of {generation_id}"), asked as answer:
            if answer.status != HTTPStatus.OK:
                self._raise_for(answer.status, await answer.read())
            return await _read(answer)

    async def cancel(self, generation_id: str) -> None:
        """Ask it to stop between steps; gone is success. Raises any WorkerError."""
        async with self._speaking(f"cancelling {generation_id}"):
            code, content = await self._ask("DELETE", f"/generations/{generation_id}")
        if not HTTPStatus.OK <= code < HTTPStatus.MULTIPLE_CHOICES and code not in GONE:
            self._raise_for(code, content)

    async def check_token(self) -> None:
        """Whether the worker takes our token, asked in a way that changes nothing. Raises any WorkerError."""
        await self.cancel(NO_GENERATION)

    def _session_now(self) -> aiohttp.ClientSession:
        """Made when it is first used: it belongs to the event loop that runs then."""
        if self._session is None:
            connector = aiohttp.UnixConnector(self._socket) if self._socket else aiohttp.TCPConnector()
            self._session = aiohttp.ClientSession(
                self._url,
                connector=connector,
                read_bufsize=READ_AHEAD_BYTES,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._patience.connect_s, sock_read=self._patience.answer_s
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # a proxy is no way to a worker
            )
        return self._session

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        async with self._session_now().request(method, path) as answer:
            return answer.status, await answer.read()

    @asynccontextmanager
    async def _speaking(self, doing: str) -> AsyncIterator[None]:
        try:
            yield
        except aiohttp.SocketTimeoutError as error:
            raise WorkerSilentError(f"worker {self.name}: was silent for too long, {doing}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise WorkerUnreachableError(
                f"worker {self.name}: the connection failed, {doing}: {str(error) or type(error).__name__}"
            ) from error

    async def _lines(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        """As they come. A silence that is noticed far too late was ours: what the worker sent meanwhile lies unread,
        and is no news of the worker. Raises WorkerUnreachableError then, SocketTimeoutError if it was the worker's."""
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        try:
            async for line in answer.content:
                yield line
                heard_at = loop.time()
        except aiohttp.SocketTimeoutError as error:
            silent_s = loop.time() - heard_at
            if silent_s < LATE * self._patience.silence_s:
                raise
            raise WorkerUnreachableError(
                f"worker {self.name}: not listened to for {silent_s:.0f} s, because this process stood still"
            ) from error

    def _event(self, generation_id: str, line: bytes) -> Event:
        try:
            event = EVENT.validate_json(line)
        except ValidationError as error:
            raise self._not_the_contract(f"its stream says {line[:200]!r}") from error
        if event.id != generation_id:
            raise self._not_the_contract(f"the stream of {generation_id} speaks of {event.id}")
        return event

    def _raise_for(self, code: int, content: bytes) -> None:
        try:
            problem = Problem.model_validate_json(content)
        except ValidationError as error:
            raise self._not_the_contract(f"it answered {code} without a Problem") from error
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


async def _read(answer: aiohttp.ClientResponse) -> FetchedImage:
    """All that is left of the answer."""
    data, digest = bytearray(), hashlib.sha256()
    async for piece in answer.content.iter_any():
        data += piece
        digest.update(piece)
    return FetchedImage(bytes(data), digest.hexdigest())


async def _image_behind(answer: aiohttp.ClientResponse, size: int) -> FetchedImage | None:
    """The image behind the last event, if it comes whole: a stream that breaks off now has told all it had to tell."""
    try:
        image = await _read(answer)
    except (aiohttp.ClientError, OSError):
        return None
    return image if len(image.data) == size else None


async def _to_its_end(answer: aiohttp.ClientResponse) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(END_OF_STREAM_S):
            while await answer.content.readany():
                pass
