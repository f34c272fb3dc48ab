"""A receiver of webhooks on loopback: real HTTP (or HTTPS), answers as told, remembers what it was sent."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


@dataclass(frozen=True)
class Sent:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`answers` are given in turn, then 204 for ever; 0 is never answered. A text is where a 307 leads."""

    port: int = 0
    answers: deque[int | str] = field(default_factory=deque)
    retry_after: str | None = None
    got: list[Sent] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "/hook", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        async with self.news:
            self.got.append(Sent(request.url.path, dict(request.headers), body))
            self.news.notify_all()
        answer = self.answers.popleft() if self.answers else 204
        headers: dict[str, str] = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        if answer == 0:
            await self.closing.wait()
        if isinstance(answer, str):
            headers["Location"] = answer
        await Response(status_code=307 if isinstance(answer, str) else answer or 500, headers=headers)(
            scope, receive, send
        )

    async def has(self, count: int, within_s: float = 30) -> list[Sent]:
        """What it was sent, once that are `count`."""
        async with asyncio.timeout(within_s), self.news:
            await self.news.wait_for(lambda: len(self.got) >= count)
            return list(self.got)


@asynccontextmanager
async def receiver(certificate: tuple[str, str] | None = None) -> AsyncIterator[Receiver]:
    """Listening; `certificate` is the files of a certificate and its key."""
    app = Receiver()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        app.port = sock.getsockname()[1]
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        if certificate is not None:
            config.ssl_certfile, config.ssl_keyfile = certificate
            config.ssl_version = ssl.PROTOCOL_TLS_SERVER
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield app
        finally:
            app.closing.set()
            server.should_exit = True
            await serving


@dataclass(frozen=True)
class Aside:
    """A receiver on a loop of its own, for tests that have none."""

    receiver: Receiver
    loop: asyncio.AbstractEventLoop

    def has(self, count: int, within_s: float = 30) -> list[Sent]:
        return asyncio.run_coroutine_threadsafe(self.receiver.has(count, within_s), self.loop).result(within_s + 5)


@contextmanager
def receiver_aside() -> Iterator[Aside]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stack = AsyncExitStack()
    try:
        listening = asyncio.run_coroutine_threadsafe(stack.enter_async_context(receiver()), loop)
        yield Aside(listening.result(30), loop)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
