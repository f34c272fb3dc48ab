"""HTTP to a server on a machine's loopback, through a connection that is there already: nobody else here can use it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx

from infra.hosts import HostError
from infra.ssh.connection import Connection

ANSWER_S = 40.0


class ThroughSsh(httpx.AsyncBaseTransport):
    """Each request is a channel of the connection to its own port. Whole answers, no streams. `leave` is told when its
    client closes, where the connection was made for that one alone."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], leave: Callable[[], None] = lambda: None) -> None:
        self._connect, self._leave = connect, leave

    async def aclose(self) -> None:
        self._leave()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        port = request.url.port or 80
        try:
            connection = await self._connect()
            answer = await connection.exchange(
                port, request.method, request.url.raw_path.decode(), dict(request.headers), body, ANSWER_S
            )
        except HostError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        if answer is None:
            where = f"{connection.target.address}'s loopback port {port}"
            raise httpx.ConnectError(f"nobody answers at {where}", request=request)
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body, request=request)
