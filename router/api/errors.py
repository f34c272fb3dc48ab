"""The one place where an error becomes an answer, in the dialect of the API that was asked.

    /generate              seed-style: {"detail": "…"}, as the published server answers
    /v1/images, models, files, batches
                           OpenAI's: {"error": {"message", "type", "param", "code"}}
    /v1/ideogram-…, /v1/generations
                           Ideogram's: {"error": "…"}
    everything else        problem details (RFC 9457)

The path decides, not the route: an unknown path and a wrong method have no route. The edge chooses alike for
the errors it makes itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from router.api.rate import remember_rate
from router.api.refusals import Kind, Refusal, RefusedError, refusal_of
from router.errors import RateLimitedError, RouterError
from worker.contract import PROBLEM_MEDIA_TYPE, Frozen, Problem

_log = structlog.stdlib.get_logger(__name__)


class Dialect(StrEnum):
    SEED = "seed"
    OPENAI = "openai"
    IDEOGRAM = "ideogram"
    PROBLEM = "problem"


_PATHS = {
    Dialect.SEED: re.compile(r"/generate(/|$)"),
    Dialect.OPENAI: re.compile(r"/v1/(images|models|files|batches)(/|$)"),
    Dialect.IDEOGRAM: re.compile(r"/(v1/(ideogram-v[34]|generations)|remix|edit|reframe|upscale|describe)(/|$)"),
}


class IdeogramError(Frozen):
    """What the hosted API says when it cannot."""

    error: str


def dialect_of(path: str) -> Dialect:
    return next((dialect for dialect, pattern in _PATHS.items() if pattern.match(path)), Dialect.PROBLEM)


class SeedError(Frozen):
    """What the published server says when it cannot."""

    detail: str


class OpenAIErrorBody(Frozen):
    message: str
    type: str
    param: str | None = Field(description="The first field at fault, if one is.")
    code: str | None


class OpenAIError(Frozen):
    """OpenAI's error object."""

    error: OpenAIErrorBody


Answers = dict[int | str, dict[str, Any]]
"""FastAPI's own shape for documented answers."""

ALWAYS = (Kind.UNAUTHORIZED, Kind.INTERNAL, Kind.UNAVAILABLE)
BODY = (Kind.INVALID_JSON, Kind.INVALID_REQUEST, Kind.BODY_TOO_LARGE, Kind.UNSUPPORTED_MEDIA_TYPE)
FORM = (Kind.INVALID_FORM, *BODY)
ADMISSION = (
    Kind.FORBIDDEN,
    Kind.IDEMPOTENCY_MISMATCH,
    Kind.RATE_LIMITED,
    Kind.TOO_MANY_JOBS,
    Kind.POOL_UNAVAILABLE,
    Kind.UNMAKEABLE,
    Kind.QUEUE_FULL,
    Kind.WAIT_TOO_LONG,
)
WAITING = (Kind.CANCELLED, Kind.EXPIRED, Kind.FAILED)
NAMED = (Kind.INVALID_REQUEST, Kind.NOT_FOUND, Kind.METHOD_NOT_ALLOWED)
"""What routes may answer: all of them; those that read a body; that make jobs; that wait for them; that name something
in their path."""
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}}


def documented(dialect: Dialect, *kinds: Kind) -> Answers:
    """A route's refusals of these kinds and of those that every route with a key has, as its dialect says them."""
    return described(dialect, *ALWAYS, *kinds)


def described(dialect: Dialect, *kinds: Kind) -> Answers:
    """Refusals of these kinds and no others."""
    models: Mapping[Dialect, dict[str, Any]] = {
        Dialect.SEED: {"model": SeedError},
        Dialect.OPENAI: {"model": OpenAIError},
        Dialect.IDEOGRAM: {"model": IdeogramError},
        # In place, because FastAPI would describe a `model` as plain JSON.
        Dialect.PROBLEM: {"content": {PROBLEM_MEDIA_TYPE: {"schema": Problem.model_json_schema()}}},
    }
    found: Answers = {}
    headlines: dict[int, dict[str, None]] = {}
    for kind in kinds:
        headlines.setdefault(status_of(kind, dialect), {})[kind.headline] = None
    for status, said in sorted(headlines.items()):
        found[status] = {**models[dialect], "description": "; or: ".join(said) + "."}
        if status in (429, 503):
            found[status]["headers"] = _RETRY_AFTER
    return found


def openai_error(refusal: Refusal) -> OpenAIError:
    return OpenAIError(error=_openai_error(refusal, refusal.detail))


def status_of(kind: Kind, dialect: Dialect) -> int:
    match dialect, kind:
        case Dialect.SEED, Kind.INVALID_JSON:
            return 422  # FastAPI, which the published server is written with, calls a broken body so as well
        case Dialect.OPENAI | Dialect.IDEOGRAM, Kind.INVALID_REQUEST:
            return 400  # 422 is Ideogram's word for a prompt that failed its safety check, and nothing else
        case _:
            return kind.status


def answer(refusal: Refusal, dialect: Dialect, request_id: str = "") -> Response:
    """`refusal` as an HTTP answer. An internal error names the request, so that its log line can be found."""
    detail = refusal.detail
    if refusal.kind is Kind.INTERNAL and request_id:
        detail = f"{detail} (request {request_id})"
    headers = dict(refusal.headers)
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    status = status_of(refusal.kind, dialect)
    match dialect:
        case Dialect.SEED:
            return JSONResponse(SeedError(detail=detail).model_dump(), status, headers)
        case Dialect.OPENAI:
            if refusal.kind in (Kind.FAILED, Kind.CANCELLED, Kind.EXPIRED, Kind.NOT_SERVED):
                # OpenAI's clients repeat every 409 and 5xx unless told not to; another try would end the same.
                headers["x-should-retry"] = "false"
            body = OpenAIError(error=_openai_error(refusal, detail))
            return JSONResponse(body.model_dump(), status, headers)
        case Dialect.IDEOGRAM:
            return JSONResponse(IdeogramError(error=detail).model_dump(), status, headers)
        case Dialect.PROBLEM:
            problem = Problem(
                type=refusal.kind,
                title=refusal.kind.headline,
                status=status,
                detail=detail,
                errors=[str(fault) for fault in refusal.faults],
            )
            return JSONResponse(problem.model_dump(), status, headers, PROBLEM_MEDIA_TYPE)


def _openai_error(refusal: Refusal, message: str) -> OpenAIErrorBody:
    param, code = None, str(refusal.kind)
    if refusal.faults:
        first = refusal.faults[0]
        param, code = (first.fields[0] if first.fields else None), str(first.code)
    match refusal.kind:
        case Kind.UNAUTHORIZED:
            kind, code = "invalid_request_error", "invalid_api_key"
        case Kind.RATE_LIMITED | Kind.TOO_MANY_JOBS:
            kind, code = "requests", "rate_limit_exceeded"
        case Kind.MODEL_NOT_FOUND:
            kind, param = "invalid_request_error", "model"
        case Kind.NOT_SERVED:
            kind = "invalid_request_error"
        case _:
            kind = "server_error" if refusal.kind.status >= 500 else "invalid_request_error"
    return OpenAIErrorBody(message=message, type=kind, param=param, code=code)


def install(app: FastAPI) -> None:
    """Make `app` answer all that we know by name. The rest is caught, and logged, by `router.api.requests`."""
    for known in (RefusedError, RequestValidationError, HTTPException, RouterError):
        app.add_exception_handler(known, _answer_error)


async def _answer_error(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    if isinstance(error, RateLimitedError):
        remember_rate(request, error.rate)
    if refusal.kind in (Kind.INTERNAL, Kind.UNAVAILABLE) and not isinstance(error, RefusedError):
        # The answer says less than the error does, on purpose: paths and databases are the operator's business.
        _log.error("request failed", path=request.url.path, error=str(error))
    return answer(refusal, dialect_of(request.url.path), request.scope.get("request_id", ""))
