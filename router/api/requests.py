"""The rim of both apps: every request gets an id, one log line, one count, and an answer whatever happens."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPMethod

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.api.errors import answer, dialect_of
from router.api.rate import tell_rate
from router.api.refusals import Kind, Refusal, refusal_of, refused

_log = structlog.stdlib.get_logger(__name__)

_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The ids that the edge lets pass too: they can do no harm in a log or a header."""
_METHODS = frozenset(HTTPMethod)
_QUIET = ("/healthz", "/readyz", "/metrics")
JOBS_NAMED = 16
"""In the header X-Job-Id: an answer's headers have a bound, too."""


@dataclass(frozen=True, slots=True)
class Served:
    """One request that has ended, in words that may become a metric's labels.

    `route` is the path's template, never the path. `method` is one of HTTP's or "other": a client may send any word.
    """

    method: str
    route: str
    status: int
    seconds: float


class Rim:
    """ASGI middleware, the outermost. `observe` is told of every request that has ended."""

    def __init__(self, app: ASGIApp, observe: Callable[[Served], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if jobs := _jobs():
                    headers["X-Job-Id"] = jobs  # the edge's log names it, too
                tell_rate(scope, headers)
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:  # the rim: whatever nobody foresaw still gets an answer, and the log its trace
            _log.exception("request failed", path=scope["path"])
            if status:
                raise  # half an answer is out; the server can only cut the connection
            response = answer(refusal_of(error), dialect_of(scope["path"]), request_id)
            await response(scope, receive, send_named)
        finally:
            self._end(scope, status, time.perf_counter() - began)

    def _end(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._observe(Served(method, route, status, seconds))
        log = _log.debug if scope["path"] in _QUIET else _log.info
        log("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))


def _jobs() -> str:
    """The jobs that the request is about, as far as it is known when the answer begins; a few of very many."""
    bound = structlog.contextvars.get_contextvars()
    return str(bound.get("job") or ",".join(bound.get("jobs", ())[:JOBS_NAMED]))


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _OWN_ID.fullmatch(given) else uuid.uuid4().hex


class BodyBound:
    """ASGI middleware: reads a request's body whole, or refuses it after `max_bytes`, whatever its length claims.

    Every body here is one JSON object, so nothing is lost by not streaming it; but for those of the paths in
    `streamed`, whose routes hold a bound themselves. (Starlette has such a bound too, but it answers by itself, in
    plain text.)
    """

    def __init__(self, app: ASGIApp, max_bytes: int, streamed: Collection[str] = ()) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._streamed:
            await self._app(scope, receive, send)
            return
        body, message = bytearray(), None
        claimed = Headers(scope=scope).get("content-length", "")
        too_large = claimed.isdecimal() and int(claimed) > self._max_bytes
        while not too_large and (message is None or message.get("more_body")):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            too_large = len(body) > self._max_bytes
        if too_large:
            refusal = Refusal(Kind.BODY_TOO_LARGE, f"the body is larger than {self._max_bytes} bytes")
            await answer(refusal, dialect_of(scope["path"]))(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message or await receive()

        await self._app(scope, replay, send)


async def json_only(request: Request) -> None:  # not `def`: FastAPI would ask a thread for it
    """A body in another type is refused by name, instead of as a body that lacks every field."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise refused(
            Kind.UNSUPPORTED_MEDIA_TYPE,
            f"the body is {media_type or 'of no type'}; send Content-Type: application/json",
        )
