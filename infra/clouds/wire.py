"""Requests to a provider's HTTP API: what may be repeated is, what may not never is.

A question is asked again after a failure; an order (anything that may rent) is sent once, and when its answer
does not come the outcome is unknown. Both keep to the provider's limits (`infra.clouds.quota`). What paths and
answers mean is each provider's module's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from infra.clouds import CloudError, LimitedError, OutcomeUnknownError
from infra.clouds.quota import Quota

REQUESTS = "requests"
CREATES = "creates"

ANSWER_S = 30.0
"""Providers ask theirs; a create takes seconds."""
TRIES = 4
PAUSE_S = 1.0
"""Before the second try; doubled before each further one."""
WAITS_FOR_QUOTA_S = 60.0
"""A question waits so long for its turn. An order does not wait here: whoever gave it tells the user first."""
SHOWN_CHARACTERS = 300

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: a status and a JSON value (None if there was none)."""

    status: int
    data: JsonValue
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Wire:
    """One provider's API. `key` gives the API key, at the moment of use; `pause_s` is `PAUSE_S` but for tests."""

    provider: str
    base: str
    key: Callable[[], str]
    quota: Quota
    answer_s: float = ANSWER_S
    pause_s: float = PAUSE_S
    public: frozenset[str] = frozenset()
    """Paths that are answered without a key."""

    async def ask(
        self, method: str, path: str, body: JsonValue = None, params: Mapping[str, str | int] | None = None
    ) -> Reply:
        """A question, or something that may be done twice. Raises CloudError when no answer comes of it."""
        problem = ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(self.pause_s * 2 ** (number - 1))
            await self._turn()
            try:
                reply = await self._send(method, path, body, params)
            except httpx.TransportError as error:
                problem = f"no answer ({type(error).__name__})"
                continue
            if reply.status == httpx.codes.TOO_MANY_REQUESTS:
                problem = "too many requests"
                await self._closed(REQUESTS, reply)
            elif reply.status < 500:
                return reply
            else:
                problem = f"{reply.status}: {shown(reply.data)}"
        raise CloudError(
            f"{self.provider} does not answer {method} {path}: {problem}, in {TRIES} tries. Nothing is concluded from "
            "that; run the same command again"
        )

    async def order(self, path: str, body: JsonValue, what: str, kind: str = CREATES) -> Reply:
        """Send once. LimitedError: not sent or refused. OutcomeUnknownError: it may have been carried out."""
        for counted in {kind, REQUESTS}:
            if wait := await self.quota.take(counted):
                raise LimitedError(f"{what}: {self.provider} takes no more {counted} for {wait:.0f} s", wait)
        try:
            reply = await self._send("POST", path, body, None)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CloudError(
                f"{what}: {self.provider} is out of reach ({type(error).__name__}); nothing was sent"
            ) from None
        except httpx.TransportError as error:
            raise OutcomeUnknownError(f"{what}: {self.provider} did not answer ({type(error).__name__})") from None
        if reply.status == httpx.codes.TOO_MANY_REQUESTS:
            wait = await self._closed(kind, reply)
            raise LimitedError(f"{what}: {self.provider} takes no more {kind} for {wait:.0f} s", wait)
        if reply.status >= 500:
            raise OutcomeUnknownError(f"{what}: {self.provider} answered {reply.status}: {shown(reply.data)}")
        return reply

    async def _turn(self) -> None:
        waited = 0.0
        while wait := await self.quota.take(REQUESTS):
            if waited + wait > WAITS_FOR_QUOTA_S:
                raise LimitedError(
                    f"{self.provider} takes no more requests for {wait:.0f} s; run this again then", wait
                )
            await asyncio.sleep(wait)
            waited += wait

    async def _closed(self, kind: str, reply: Reply) -> float:
        wait = reply.retry_after_s if reply.retry_after_s is not None else self.pause_s
        await self.quota.close(kind, wait)
        return wait

    async def _send(self, method: str, path: str, body: JsonValue, params: Mapping[str, str | int] | None) -> Reply:
        async with self._client(path) as client:
            response = await client.request(method, path, json=body, params=params)
        try:
            data: JsonValue = response.json() if response.content else None
        except ValueError:
            data = response.text[:SHOWN_CHARACTERS]
        return Reply(response.status_code, data, _retry_after(response, data))

    @asynccontextmanager
    async def _client(self, path: str) -> AsyncIterator[httpx.AsyncClient]:
        # A default User-Agent of Python's is refused by some.
        headers = {"User-Agent": f"letterpress/{version('letterpress')}", "Accept": "application/json"}
        if path not in self.public:
            headers["Authorization"] = f"Bearer {self.key()}"
        async with httpx.AsyncClient(
            base_url=self.base,
            headers=headers,
            timeout=self.answer_s,
            trust_env=not _loopback(self.base),
            verify=_authorities(),
        ) as client:
            yield client


@cache
def _authorities() -> ssl.SSLContext:
    """Read once: that takes longer than most questions."""
    return httpx.create_ssl_context()


def read_as(model: type[M], data: object, what: str) -> M:
    """A provider's JSON as a typed value. Raises CloudError that names what of it is not as expected."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _unexpected(error, what) from None


def read_list(model: type[M], data: object, what: str) -> list[M]:
    try:
        return TypeAdapter(list[model]).validate_python(data)  # type: ignore[valid-type] # a class, at run time
    except ValidationError as error:
        raise _unexpected(error, what) from None


def shown(data: object) -> str:
    """What a person should see of an answer."""
    return str(data)[:SHOWN_CHARACTERS] if data else "(no text)"


def _unexpected(error: ValidationError, what: str) -> CloudError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    return CloudError(
        f"{what} is not as this version knows it: {where}: {first['msg']}. Look for a newer version of "
        "Letterpress, or report this line"
    )


def _retry_after(response: httpx.Response, data: JsonValue) -> float | None:
    """Seconds, from the header or from the body's `retryAfter`."""
    said: object = response.headers.get("Retry-After")
    if said is None and isinstance(data, dict):
        said = data.get("retryAfter")
    try:
        return max(0.0, float(str(said))) if said is not None else None
    except ValueError:
        return None


def _loopback(base: str) -> bool:
    """A proxy from the environment has no business between us and an emulator on this computer."""
    host = urlsplit(base).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
