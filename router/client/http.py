"""One HTTP call to a router or a worker: send, read, and turn every failure into this package's errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from router.client.errors import (
    RouterAnswerError,
    RouterAwayError,
    RouterNotFoundError,
    RouterPoolUnavailableError,
    RouterRefusedError,
    RouterUnauthorizedError,
    RouterUnavailableError,
    RouterUnmakeableError,
)
from router.contract.names import POOL_UNAVAILABLE, UNMAKEABLE
from worker.contract import Problem

T = TypeVar("T")

SILENCE_S = 40.0
"""Seconds without a byte after which a router counts as away: event streams beat every 15 s."""
CONNECT_S = 5.0
CONNECTIONS = 100
"""At a time, to one router, unless more are asked for."""


class HttpClient:
    """What all clients share. `transport` is the seam for a unix socket or a test; `connections` are as many as the
    caller's requests at a time: one more would wait for its turn and then take the router for away."""

    whom = "the router"
    """Who is spoken to, in errors."""

    def __init__(
        self,
        base_url: str,
        key: str,
        transport: httpx.AsyncBaseTransport | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
            # A proxy from the environment would get the key, and cannot reach a loopback address anyway.
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _call(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, follow: bool = False
    ) -> httpx.Response:
        async with self._open(method, path, body, follow=follow) as response:
            await response.aread()
            return response

    async def _read(
        self, answer: TypeAdapter[T], method: str, path: str, body: Mapping[str, object] | None = None
    ) -> T:
        return self._parsed(answer, await self._call(method, path, body), method, path)

    def _parsed(self, answer: TypeAdapter[T], response: httpx.Response, method: str, path: str) -> T:
        try:
            return answer.validate_json(response.content)
        except ValidationError as error:
            raise RouterAnswerError(f"{self._name(method, path)}: not an answer of {self.whom}'s: {error}") from error

    async def _send(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """A body that is no JSON object, and a response with a good status."""
        async with self._opened(method, path, self._http.stream(method, path, content=content, headers=headers)) as got:
            await got.aread()
            return got

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, follow: bool = False
    ) -> AsyncIterator[httpx.Response]:
        """A response with a good status, its body not yet read. httpx sends no key along to another origin."""
        stream = self._http.stream(method, path, json=body, follow_redirects=follow)
        async with self._opened(method, path, stream) as response:
            yield response

    @asynccontextmanager
    async def _opened(
        self, method: str, path: str, stream: AbstractAsyncContextManager[httpx.Response]
    ) -> AsyncIterator[httpx.Response]:
        name = self._name(method, path)
        try:
            async with stream as response:
                if not response.is_success:
                    await response.aread()
                    raise _refusal(name, response)
                yield response
        except httpx.TransportError as error:
            raise RouterAwayError(f"{name}: {self.whom} does not answer: {error!r}") from error

    def _name(self, method: str, path: str) -> str:
        return f"{method} {str(self._http.base_url).rstrip('/')}{path}"


def _refusal(call: str, response: httpx.Response) -> RouterRefusedError:
    try:
        problem = Problem.model_validate_json(response.content)
        type_, detail = problem.type, "; ".join(problem.errors) or problem.detail
    except ValidationError:
        type_, detail = "", response.text[:200] or response.reason_phrase
    match response.status_code:
        case 401:
            kind: type[RouterRefusedError] = RouterUnauthorizedError
        case 404:
            kind = RouterNotFoundError
        case 503 if type_ == UNMAKEABLE:
            kind = RouterUnmakeableError
        case 503 if type_ == POOL_UNAVAILABLE:
            kind = RouterPoolUnavailableError
        case 429 | 503:
            kind = RouterUnavailableError
        case _:
            kind = RouterRefusedError
    retry_after = response.headers.get("retry-after", "")
    return kind(call, response.status_code, detail, float(retry_after) if retry_after.isdecimal() else None)
