"""The client is light: who keeps machines must not need what serves them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime

import httpx
import pytest

from router.client import (
    AdminClient,
    JobEndedError,
    RouterAnswerError,
    RouterAwayError,
    RouterClient,
    RouterRefusedError,
    RouterUnavailableError,
)
from router.contract import INTERACTIVE, JobRequest, JobState, JobView

HEAVY = {"fastapi", "starlette", "sqlalchemy", "uvicorn", "prometheus_client", "torch"}


JOB = JobView(
    id="job_" + "0" * 26,
    pool=INTERACTIVE,
    state=JobState.QUEUED,
    prompt="a fox",
    width=256,
    height=256,
    steps=None,
    preset=None,
    seed=1,
    attempt=0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def _admin(answer: httpx.Response | Exception) -> AdminClient:
    def handle(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return AdminClient("http://127.0.0.1:1", "key", httpx.MockTransport(handle))


def test_the_client_imports_nothing_of_the_server() -> None:
    code = "import sys, router.client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


async def test_an_answer_that_is_no_routers_is_called_so() -> None:
    async with _admin(httpx.Response(200, text="<html>somebody else</html>")) as admin:
        with pytest.raises(RouterAnswerError, match="/healthz: not an answer of the router's"):
            await admin.health()


async def test_not_now_comes_with_the_seconds_to_wait() -> None:
    async with _admin(httpx.Response(503, headers={"Retry-After": "7"}, text="later")) as admin:
        with pytest.raises(RouterUnavailableError, match="503, later") as caught:
            await admin.health()
    assert caught.value.retry_after_s == 7


async def test_a_refusal_without_words_still_has_its_status() -> None:
    async with _admin(httpx.Response(418)) as admin:
        with pytest.raises(RouterRefusedError) as caught:
            await admin.health()
    assert caught.value.status == 418


async def test_a_connection_that_breaks_is_a_router_that_is_away() -> None:
    async with _admin(httpx.ReadError("reset")) as admin:
        with pytest.raises(RouterAwayError, match="reset"):
            await admin.workers()


async def test_who_gives_up_is_cancelled_though_the_router_is_away() -> None:
    waiting, asked = asyncio.Event(), []

    async def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        match request.method:
            case "POST":
                return httpx.Response(202, text=JOB.model_dump_json())
            case "GET":
                waiting.set()
                await asyncio.Event().wait()
        raise httpx.ConnectError("refused")

    async with RouterClient("http://127.0.0.1:1", "key", httpx.MockTransport(handle)) as client:
        generating = asyncio.create_task(client.generate(JobRequest(prompt="a fox")))
        await waiting.wait()
        generating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await generating
    assert asked == ["POST", "GET", "DELETE"]


async def test_a_submission_whose_answer_is_lost_is_made_again_and_is_the_same_job() -> None:
    keys: list[str] = []
    ended = JOB.model_copy(update={"state": JobState.CANCELLED})

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            keys.append(request.headers["Idempotency-Key"])
            if len(keys) == 1:
                raise httpx.ReadError("reset")
        return httpx.Response(200, text="" if request.url.path.endswith("/events") else ended.model_dump_json())

    async with RouterClient("http://127.0.0.1:1", "key", httpx.MockTransport(handle)) as client:
        for _ in range(2):
            with pytest.raises(JobEndedError):
                await client.generated(JobRequest(prompt="a fox"))
    assert keys[0] == keys[1] != keys[2]


async def test_a_heartbeat_is_a_sign_of_life() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=": \n\n" if request.url.path.endswith("/events") else JOB.model_dump_json())

    signs: list[None] = []
    async with RouterClient("http://127.0.0.1:1", "key", httpx.MockTransport(handle)) as client:
        await client.follow(JOB.id, alive=lambda: signs.append(None))
    assert signs


async def test_as_many_connections_as_are_asked_for_are_open_at_once() -> None:
    wanted = 130
    here, answers = asyncio.Event(), 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        await reader.readuntil(b"\r\n\r\n")
        answers += 1
        if answers == wanted:
            here.set()
        await here.wait()
        body = JOB.model_dump_json().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with RouterClient(url, "key", connections=wanted) as client, asyncio.timeout(30):
            found = await asyncio.gather(*(client.job(JOB.id) for _ in range(wanted)))
    assert found == [JOB] * wanted
