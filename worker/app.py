"""The worker's HTTP border: routes, the bearer token, the event stream, and errors as problem details.

What the routes mean stands in `worker.contract`, what happens behind them in `worker.runner`.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from worker.contract import (
    EVENTS_AND_IMAGE_MEDIA_TYPE,
    EVENTS_MEDIA_TYPE,
    HEARTBEAT_S,
    MAX_BODY_BYTES,
    PROBLEM_MEDIA_TYPE,
    WITH_IMAGE,
    Finished,
    GenerationId,
    GenerationRequest,
    Problem,
    ProblemType,
    WorkerState,
)
from worker.failures import (
    BusyError,
    ConflictError,
    ImageGoneError,
    NotFinishedError,
    NotReadyError,
    RunnerError,
    UnknownGenerationError,
)
from worker.faults import faults
from worker.generation import Generation
from worker.metrics import Metrics
from worker.runner import Runner

TOKEN_HEADER = "X-Letterpress-Token"  # noqa: S105 - a header's name
"""Comes before `Authorization`, which belongs to a load balancer where one stands before the worker."""
RETRY_AFTER_S = 1
MAX_DROPPED_BYTES = 256 * 2**20
"""Whoever sends more than this is not waited for."""
GENERATION_ID: TypeAdapter[str] = TypeAdapter(GenerationId)

log = structlog.get_logger(__name__)

RUNNER_PROBLEMS: dict[type[RunnerError], tuple[ProblemType, HTTPStatus]] = {
    ConflictError: (ProblemType.CONFLICT, HTTPStatus.CONFLICT),
    BusyError: (ProblemType.BUSY, HTTPStatus.SERVICE_UNAVAILABLE),
    NotReadyError: (ProblemType.NOT_READY, HTTPStatus.SERVICE_UNAVAILABLE),
    UnknownGenerationError: (ProblemType.NOT_FOUND, HTTPStatus.NOT_FOUND),
    NotFinishedError: (ProblemType.NOT_FINISHED, HTTPStatus.CONFLICT),
    ImageGoneError: (ProblemType.GONE, HTTPStatus.GONE),
}
STATUS_PROBLEMS = {
    HTTPStatus.NOT_FOUND: (ProblemType.NOT_FOUND, "there is nothing at this path"),
    HTTPStatus.METHOD_NOT_ALLOWED: (ProblemType.METHOD_NOT_ALLOWED, "this path does not know this method"),
}


class _RefusedError(Exception):
    """Answered at this border, before the runner is asked."""

    def __init__(self, kind: ProblemType, status: HTTPStatus, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.kind, self.status, self.detail, self.errors = kind, status, detail, errors or []


def create_app(runner: Runner, metrics: Metrics, token: str, *, heartbeat_s: float = HEARTBEAT_S) -> FastAPI:
    """The contract's routes over `runner`; all but /livez and /readyz ask for `token`."""
    app = FastAPI(title="Letterpress worker", openapi_url=None)
    _answer_errors(app)

    def authorized(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if own := request.headers.get(TOKEN_HEADER):
            scheme, given = "bearer", own
        # Constant time, so that nobody learns the token a character at a time.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise _RefusedError(
                ProblemType.UNAUTHORIZED,
                HTTPStatus.UNAUTHORIZED,
                "send the worker's token as `Authorization: Bearer <token>`",
            )

    guarded = [Depends(authorized)]

    _answer_probes(app, runner)

    @app.put("/generations/{generation_id}", dependencies=guarded)
    async def put(generation_id: Annotated[str, Depends(_generation_id)], request: Request) -> Response:
        generation = runner.put(generation_id, _parsed(await _body(request)))
        if request.query_params.get(WITH_IMAGE) != "true":
            return StreamingResponse(_lines(generation, heartbeat_s), media_type=EVENTS_MEDIA_TYPE)
        lines = _lines(generation, heartbeat_s, runner)
        return StreamingResponse(lines, media_type=EVENTS_AND_IMAGE_MEDIA_TYPE)

    @app.get("/generations/{generation_id}/image", dependencies=guarded)
    async def image(generation_id: Annotated[str, Depends(_generation_id)]) -> Response:
        return Response(runner.image(generation_id), media_type=runner.media_type(generation_id))

    @app.delete("/generations/{generation_id}", dependencies=guarded)
    async def cancel(generation_id: Annotated[str, Depends(_generation_id)]) -> Response:
        runner.cancel(generation_id)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @app.get("/metrics", dependencies=guarded)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _answer_probes(app: FastAPI, runner: Runner) -> None:
    """Who asks whether this worker lives, and whether it is ready, needs no token."""

    @app.get("/livez")
    async def livez() -> Response:
        return Response(status_code=HTTPStatus.OK)

    @app.get("/readyz")
    async def readyz() -> Response:
        status = runner.status()
        ready = status.state is WorkerState.READY
        code = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status.model_dump_json(), code, media_type="application/json")

    @app.get("/ping")
    async def ping() -> Response:
        match runner.status().state:
            case WorkerState.READY:
                return Response(status_code=HTTPStatus.OK)
            case WorkerState.LOADING:
                return Response(status_code=HTTPStatus.NO_CONTENT)
            case _:
                return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)


async def _lines(generation: Generation, heartbeat_s: float, images: Runner | None = None) -> AsyncIterator[bytes]:
    """With `images`, the finished one's bytes come last."""
    async for event in generation.follow(heartbeat_s):
        yield (event.model_dump_json().encode() if event else b"") + b"\n"
        if images is not None and isinstance(event, Finished):
            with suppress(ImageGoneError):  # so late that it is kept no longer; whoever fetches it is told
                yield images.image(generation.id)


def _generation_id(generation_id: str) -> str:
    try:
        return GENERATION_ID.validate_python(generation_id)
    except ValidationError:
        raise _RefusedError(
            ProblemType.INVALID_REQUEST,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the id of a generation is {job}.{attempt}: letters, digits, - and _, a dot, a number",
            [f"id: {generation_id[:80]!r} is not of that form"],
        ) from None


async def _body(request: Request) -> bytes:
    """The whole body, never more than the bound in memory, whatever Content-Length says.

    What is too much is read and dropped before it is refused: whoever still writes when a connection is
    closed under it sees a reset and never the answer.
    """
    body, size = bytearray(), 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= MAX_BODY_BYTES:
                body += chunk
            elif size > MAX_DROPPED_BYTES:
                break
    except ClientDisconnect:
        raise _RefusedError(
            ProblemType.INVALID_REQUEST, HTTPStatus.BAD_REQUEST, "the connection ended within the body"
        ) from None
    if size > MAX_BODY_BYTES:
        raise _RefusedError(
            ProblemType.TOO_LARGE,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is over {MAX_BODY_BYTES} bytes; a request with the longest prompt is far below",
        )
    return bytes(body)


def _parsed(body: bytes) -> GenerationRequest:
    try:
        return GenerationRequest.model_validate_json(body)
    except ValidationError as error:
        raise _RefusedError(
            ProblemType.INVALID_REQUEST,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "the body does not describe an image",
            faults(error),
        ) from None


def _answer_errors(app: FastAPI) -> None:
    """Every error of this app is a Problem, the framework's own included."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, _RefusedError)  # noqa: S101 - by registration; tells the type checker
        return _problem(error.kind, error.status, error.detail, error.errors)

    async def by_runner(_: Request, error: Exception) -> Response:
        assert isinstance(error, RunnerError)  # noqa: S101 - likewise
        kind, status = RUNNER_PROBLEMS[type(error)]
        return _problem(kind, status, str(error))

    async def by_framework(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - likewise
        status = HTTPStatus(error.status_code)
        kind, detail = STATUS_PROBLEMS.get(status, (ProblemType.INVALID_REQUEST, str(error.detail)))
        response = _problem(kind, status, detail)
        response.headers.update(error.headers or {})
        return response

    async def unforeseen(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return _problem(
            ProblemType.INTERNAL, HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the worker's own; its log has the rest"
        )

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        _RefusedError: refused,
        RunnerError: by_runner,
        HTTPException: by_framework,
        Exception: unforeseen,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _problem(kind: ProblemType, status: HTTPStatus, detail: str, errors: list[str] | None = None) -> Response:
    problem = Problem(type=kind, title=status.phrase, status=status, detail=detail, errors=errors or [])
    headers = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="letterpress-worker"'
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        headers["Connection"] = "close"  # part of the body may be unread
    return Response(problem.model_dump_json(), status, headers, media_type=PROBLEM_MEDIA_TYPE)
