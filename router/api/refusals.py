"""What a request is refused with, before anybody chose the words of a dialect.

A `Refusal` is the neutral value; every exception that reaches the rim of the app becomes one here, by name.
`router.api.errors` says it in the caller's dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from router.api.explain import Fault, faults, parsed, renamed
from router.contract import JobState
from router.contract.names import POOL_UNAVAILABLE, UNMAKEABLE
from router.errors import (
    AdmissionError,
    ArtifactError,
    FileInUseError,
    FilesFullError,
    IdempotencyError,
    KeyExistsError,
    KeyQueueFullError,
    PoolForbiddenError,
    PoolUnavailableError,
    QueueFullError,
    RateLimitedError,
    StoreUnavailableError,
    UnmakeableError,
    WaitTooLongError,
)
from router.jobs import Job
from worker.contract import FailureType

MAX_BODY_BYTES = 1024 * 1024
"""The edge's bound too; a request is one prompt of at most 32,768 characters."""

RESTART_RETRY_S = 2
"""Seconds after which a router that was told to restart has been replaced."""


class Kind(StrEnum):
    """What went wrong, by the name that problem details and OpenAI's `code` show."""

    INVALID_JSON = "invalid_json"
    INVALID_FORM = "invalid_form"
    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_FINISHED = "not_finished"
    NO_IMAGE = "no_image"
    NOT_RETRYABLE = "not_retryable"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    MISDIRECTED = "misdirected"
    RATE_LIMITED = "rate_limited"
    FILES_FULL = "files_full"
    TOO_MANY_JOBS = "too_many_jobs"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    CLIENT_GONE = "client_gone"
    INTERNAL = "internal"
    NOT_SERVED = "not_served"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    POOL_UNAVAILABLE = POOL_UNAVAILABLE
    UNMAKEABLE = UNMAKEABLE
    QUEUE_FULL = "queue_full"
    WAIT_TOO_LONG = "wait_too_long"
    EXISTS = "exists"

    @property
    def status(self) -> int:
        return _MEANING[self][0]

    @property
    def headline(self) -> str:
        return _MEANING[self][1]


_MEANING: Mapping[Kind, tuple[int, str]] = {
    Kind.INVALID_JSON: (400, "The body is not JSON"),
    Kind.INVALID_FORM: (400, "The body is not a form"),
    Kind.INVALID_REQUEST: (422, "The request cannot be served as it is"),
    Kind.UNAUTHORIZED: (401, "A valid key is required"),
    Kind.FORBIDDEN: (403, "This is not allowed"),
    Kind.NOT_FOUND: (404, "There is nothing here"),
    Kind.MODEL_NOT_FOUND: (404, "This model is not served here"),
    Kind.METHOD_NOT_ALLOWED: (405, "This method is not allowed here"),
    Kind.NOT_FINISHED: (409, "There is no image yet"),
    Kind.NO_IMAGE: (409, "There will be no image"),
    Kind.NOT_RETRYABLE: (409, "This job cannot be tried again"),
    Kind.CANCELLED: (409, "The job was cancelled"),
    Kind.EXPIRED: (409, "The job's deadline has passed"),
    Kind.BODY_TOO_LARGE: (413, "The body is too large"),
    Kind.UNSUPPORTED_MEDIA_TYPE: (415, "The body is of another type than it must be"),
    Kind.MISDIRECTED: (421, "This name is not served here"),
    Kind.FILES_FULL: (403, "No more files can be kept"),
    Kind.RATE_LIMITED: (429, "Too many requests"),
    Kind.TOO_MANY_JOBS: (429, "Too many jobs"),
    Kind.IDEMPOTENCY_MISMATCH: (422, "This Idempotency-Key belongs to another request"),
    Kind.EXISTS: (409, "This name is taken"),
    Kind.CLIENT_GONE: (499, "The client went away"),  # nginx's number for it; only logs and metrics see it
    Kind.INTERNAL: (500, "The router failed"),
    Kind.NOT_SERVED: (501, "This is not served here"),
    Kind.FAILED: (502, "The image could not be made"),
    Kind.UNAVAILABLE: (503, "The router cannot answer just now"),
    Kind.POOL_UNAVAILABLE: (503, "No worker takes images of this pool now"),
    Kind.UNMAKEABLE: (503, "No worker can make such an image now"),
    Kind.QUEUE_FULL: (503, "The queue is full"),
    Kind.WAIT_TOO_LONG: (503, "The wait would be too long"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """`detail` is for people, `faults` name fields, `retry_after_s` is set when asking again makes sense."""

    kind: Kind
    detail: str
    faults: tuple[Fault, ...] = ()
    retry_after_s: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """Raised by a route to end a request with `refusal`."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def refused(kind: Kind, detail: str, retry_after_s: int | None = None) -> RefusedError:
    return RefusedError(Refusal(kind, detail, retry_after_s=retry_after_s))


def stopping() -> RefusedError:
    """For a request that still waits when the router is told to stop."""
    return refused(Kind.UNAVAILABLE, "the router is restarting; send the request again", RESTART_RETRY_S)


def unauthorized(detail: str) -> RefusedError:
    return RefusedError(Refusal(Kind.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"}))


def of_faults(found: tuple[Fault, ...]) -> Refusal:
    return Refusal(Kind.INVALID_REQUEST, "; ".join(map(str, found)), found)


def of_values(error: ValidationError, names: Mapping[str, str] | None = None) -> RefusedError:
    """A request that its own schema let pass and the contract's does not; `names` as in `explain.faults`."""
    return RefusedError(of_faults(faults(error.errors(include_url=False), names)))


def of_job(job: Job, names: Mapping[str, str] | None = None) -> Refusal:
    """Why an ended job has no image."""
    if job.state is JobState.CANCELLED:
        return Refusal(Kind.CANCELLED, f"job {job.id} was cancelled before its image was made")
    if job.state is JobState.EXPIRED:
        return Refusal(Kind.EXPIRED, f"job {job.id} waited until its deadline: no worker was free for it")
    if job.error is None:
        return Refusal(Kind.INTERNAL, f"job {job.id} is {job.state} and has neither image nor reason")
    if job.error.type == FailureType.INVALID_REQUEST:
        return of_faults((renamed(parsed(job.error.detail), names or {}),))
    return Refusal(Kind.FAILED, f"job {job.id} failed ({job.error.type}): {job.error.detail}")


_ADMISSION: Mapping[type[AdmissionError], Kind] = {
    PoolUnavailableError: Kind.POOL_UNAVAILABLE,
    UnmakeableError: Kind.UNMAKEABLE,
    QueueFullError: Kind.QUEUE_FULL,
    WaitTooLongError: Kind.WAIT_TOO_LONG,
    RateLimitedError: Kind.RATE_LIMITED,
    KeyQueueFullError: Kind.TOO_MANY_JOBS,
}


def refusal_of(error: Exception) -> Refusal:  # noqa: C901, PLR0911 - one line a kind of error
    """Every exception that a request may end in. What is not known by name is internal, and says nothing."""
    match error:
        case RefusedError():
            return error.refusal
        case RequestValidationError():
            return _of_validation(error)
        case AdmissionError():
            return Refusal(_ADMISSION[type(error)], str(error), retry_after_s=error.retry_after_s)
        case PoolForbiddenError():
            return Refusal(Kind.FORBIDDEN, str(error))
        case IdempotencyError():
            return Refusal(Kind.IDEMPOTENCY_MISMATCH, str(error))
        case FilesFullError():
            return Refusal(Kind.FILES_FULL, str(error))
        case FileInUseError():
            return Refusal(Kind.INVALID_REQUEST, str(error))
        case KeyExistsError():
            return Refusal(Kind.EXISTS, str(error))
        case StoreUnavailableError():
            return Refusal(Kind.UNAVAILABLE, "the router's store does not answer", retry_after_s=RESTART_RETRY_S)
        case ArtifactError():
            return Refusal(Kind.INTERNAL, "the artifact store did not do its part; the log says why")
        case HTTPException():
            return _of_http(error)
        case _:
            return Refusal(Kind.INTERNAL, "the router failed; its log says why")


def _of_validation(error: RequestValidationError) -> Refusal:
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        at, why = found[0]["loc"][-1], found[0]["ctx"]["error"]
        return Refusal(Kind.INVALID_JSON, f"the body is not JSON: {why} at character {at}")
    return of_faults(faults(found))


def _of_http(error: HTTPException) -> Refusal:
    """Starlette's and FastAPI's own: no such path, no such method, a body beyond reading."""
    headers = dict(error.headers or {})
    match error.status_code:
        case 400:
            return Refusal(Kind.INVALID_JSON, "the body could not be read as JSON")
        case 404:
            return Refusal(Kind.NOT_FOUND, "there is nothing at this path; /openapi.json lists what there is")
        case 405:
            allowed = headers.get("Allow") or headers.get("allow") or "another method"
            return Refusal(Kind.METHOD_NOT_ALLOWED, f"use {allowed} here", headers=headers)
        case _:
            return Refusal(Kind.INTERNAL, "the router failed; its log says why")
