"""What the router makes of workers that do not keep the contract: servers that say something else, byte by byte."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from router.errors import (
    WorkerBusyError,
    WorkerError,
    WorkerProtocolError,
    WorkerRefusedError,
    WorkerSilentError,
    WorkerUnauthorizedError,
    WorkerUnavailableError,
    WorkerUnreachableError,
)
from router.worker_client import Event, FetchedImage, Patience, WorkerClient
from tests.ports import free_ports
from tests.stores import NO_TIME, request
from worker.contract import (
    EVENTS_AND_IMAGE_MEDIA_TYPE,
    EVENTS_MEDIA_TYPE,
    Accepted,
    Failed,
    FailureType,
    Finished,
    Problem,
    ProblemType,
    WorkerState,
    WorkerStatus,
)

ID = "job_x.1"
ACCEPTED = Accepted(id=ID).model_dump_json().encode()
FAILED = Failed(id=ID, type=FailureType.ENGINE_ERROR, detail="boom", retryable=True).model_dump_json().encode()
IMAGE = b"an image, as far as anybody here knows"
FINISHED = (
    Finished(
        id=ID,
        sha256=hashlib.sha256(IMAGE).hexdigest(),
        bytes=len(IMAGE),
        width=256,
        height=256,
        seed=1,
        timings=NO_TIME,
    )
    .model_dump_json()
    .encode()
)
STATUS = WorkerStatus(state=WorkerState.READY, version="1", model="m", engine="e", device="d")


def answer(status: int, body: bytes, *, whole: bool = True, media_type: str = EVENTS_MEDIA_TYPE) -> bytes:
    """An HTTP answer; one that is not whole promises a byte more than it has."""
    length = len(body) + (0 if whole else 1)
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def problem(kind: str, status: int) -> bytes:
    return answer(status, Problem(type=kind, title=kind, status=status, detail="because").model_dump_json().encode())


@asynccontextmanager
async def client_of(said: bytes, *, hang: bool = False) -> AsyncIterator[WorkerClient]:
    """A client of a server that answers `said` to whatever it is asked, and then closes or hangs."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(said)
        await writer.drain()
        if hang:
            await done.wait()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = WorkerClient("w", f"http://127.0.0.1:{port}", "t" * 16, Patience(1.0, 0.2, 0.2))
    try:
        yield client
    finally:
        done.set()
        await client.aclose()
        server.close()
        await server.wait_closed()


async def follow(client: WorkerClient) -> list[Event | FetchedImage]:
    async with aclosing(client.generate(ID, request())) as events:
        return [event async for event in events]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (problem(ProblemType.BUSY, 503), WorkerBusyError),
        (problem(ProblemType.NOT_READY, 503), WorkerUnavailableError),
        (problem(ProblemType.UNAUTHORIZED, 401), WorkerUnauthorizedError),
        (problem(ProblemType.INVALID_REQUEST, 422), WorkerRefusedError),
        (problem(ProblemType.CONFLICT, 409), WorkerProtocolError),
        (problem("something-new", 418), WorkerProtocolError),
        (answer(502, b"<html>Bad Gateway</html>"), WorkerProtocolError),
        (answer(200, b"not json\n"), WorkerProtocolError),
        (answer(200, b'{"event": "unheard-of"}\n'), WorkerProtocolError),
        (answer(200, ACCEPTED.replace(b"job_x.1", b"job_y.1") + b"\n"), WorkerProtocolError),
        (answer(200, ACCEPTED + b"\n"), WorkerUnreachableError),
        (answer(200, ACCEPTED + b"\n", whole=False), WorkerUnreachableError),
        (b"", WorkerUnreachableError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", WorkerUnreachableError),
    ],
)
async def test_each_answer_to_a_generation_is_one_error_that_names_the_worker(
    said: bytes, error: type[WorkerError]
) -> None:
    async with client_of(said) as client:
        with pytest.raises(error, match="worker w: ") as caught:
            await follow(client)
    assert type(caught.value) is error


async def test_empty_lines_are_heartbeats() -> None:
    async with client_of(answer(200, b"\n\n" + ACCEPTED + b"\n\n" + FAILED + b"\n")) as client:
        assert [type(event) for event in await follow(client)] == [Accepted, Failed]


async def test_an_image_comes_along_with_the_stream_that_asked_for_it() -> None:
    said = answer(200, ACCEPTED + b"\n" + FINISHED + b"\n" + IMAGE, media_type=EVENTS_AND_IMAGE_MEDIA_TYPE)
    async with client_of(said) as client:
        assert (await follow(client))[2:] == [FetchedImage(IMAGE, hashlib.sha256(IMAGE).hexdigest())]


@pytest.mark.parametrize(
    "said",
    [
        answer(200, FINISHED + b"\n"),  # a worker that knows nothing of it
        answer(200, FINISHED + b"\n", media_type=EVENTS_AND_IMAGE_MEDIA_TYPE),  # its image is kept no longer
        answer(200, FINISHED + b"\n" + IMAGE[:-1], media_type=EVENTS_AND_IMAGE_MEDIA_TYPE, whole=False),
        answer(200, FINISHED + b"\n" + IMAGE + b"more", media_type=EVENTS_AND_IMAGE_MEDIA_TYPE),
    ],
)
async def test_an_image_that_does_not_come_along_whole_is_none(said: bytes) -> None:
    async with client_of(said) as client:
        assert [type(event) for event in await follow(client)] == [Finished]


async def test_an_image_that_stops_halfway_is_none() -> None:
    half = answer(200, FINISHED + b"\n" + IMAGE[:9], media_type=EVENTS_AND_IMAGE_MEDIA_TYPE, whole=False)
    async with client_of(half, hang=True) as client:
        assert [type(event) for event in await follow(client)] == [Finished]


async def test_silence_is_told_from_a_broken_connection() -> None:
    async with client_of(answer(200, ACCEPTED + b"\n", whole=False), hang=True) as client:
        with pytest.raises(WorkerSilentError):
            await follow(client)


async def test_nobody_there_is_unreachable() -> None:
    client = WorkerClient("w", f"http://127.0.0.1:{free_ports(1)[0]}", "t" * 16, Patience())
    with pytest.raises(WorkerUnreachableError, match="worker w: the connection failed, asked whether it is ready"):
        await client.status()
    await client.aclose()


@pytest.mark.parametrize("status", [200, 503])
async def test_a_status_is_read_whether_ready_or_not(status: int) -> None:
    async with client_of(answer(status, STATUS.model_dump_json().encode())) as client:
        assert await client.status() == STATUS


@pytest.mark.parametrize(
    "said",
    [
        answer(404, b"{}"),
        answer(200, b"{}"),
        answer(200, STATUS.model_copy(update={"contract": "99"}).model_dump_json().encode()),
    ],
)
async def test_a_status_of_another_contract_is_an_error(said: bytes) -> None:
    async with client_of(said) as client:
        with pytest.raises(WorkerProtocolError, match="the worker contract"):
            await client.status()


@pytest.mark.parametrize(
    "said", [answer(204, b""), problem(ProblemType.NOT_FOUND, 404), problem(ProblemType.GONE, 410)]
)
async def test_cancelling_what_is_gone_is_success(said: bytes) -> None:
    async with client_of(said) as client:
        await client.cancel(ID)


async def test_a_token_that_is_not_taken_is_an_error() -> None:
    async with client_of(problem(ProblemType.UNAUTHORIZED, 401)) as client:
        with pytest.raises(WorkerUnauthorizedError, match="register it again with its own token"):
            await client.check_token()


@pytest.mark.parametrize("kind", [ProblemType.GONE, ProblemType.NOT_FINISHED, ProblemType.NOT_FOUND])
async def test_an_image_that_is_not_there_is_an_error(kind: ProblemType) -> None:
    async with client_of(problem(kind, 409)) as client:
        with pytest.raises(WorkerProtocolError, match="because"):
            await client.image(ID)
