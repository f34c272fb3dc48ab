"""Many native jobs in one request: a JobRequest a line, taken on all together or not at all.

The lines are read as they come and kept as what becomes of them, so fifty thousand cost the router tens of
megabytes; they are checked a few hundred at a time, so that others are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import structlog
from fastapi import APIRouter, Request
from pydantic import ValidationError

from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import ADMISSION, BODY, Dialect, documented
from router.api.explain import Fault, faults
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.jobs import new_job
from router.api.rate import remember_rate
from router.api.refusals import Kind, RefusedError, of_faults, refused
from router.contract import MAX_BATCH_BYTES, MAX_BATCH_JOBS, JobRequest, JobsAccepted, PoolName
from router.jobs import NewJob
from worker.contract import MAX_BODY_BYTES

PATH = "/v1/jobs/batch"
MEDIA_TYPES = ("application/x-ndjson", "application/jsonl")
AT_ONCE = 200
"""Lines that are checked before others have their turn: some milliseconds' worth."""
FAULTS_SHOWN = 20

router = APIRouter(tags=["jobs"])


@dataclass
class _Batch:
    """What has been read of one request."""

    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    wanted: list[NewJob] = field(default_factory=list)
    pool: PoolName | None = None
    wrong: list[Fault] = field(default_factory=list)


@router.post(
    PATH,
    status_code=202,
    summary="Ask for many images",
    responses=documented(Dialect.PROBLEM, *BODY, *ADMISSION),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {MEDIA_TYPES[0]: {"schema": {"type": "string", "description": "A JobRequest a line."}}},
        }
    },
)
async def submit(
    request: Request, context: InContext, key: Caller, idempotency_key: IdempotencyKey = None
) -> JobsAccepted:
    """One JobRequest a line, all of one pool, at most 50,000. All are committed before this answers, or none."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        raise refused(
            Kind.UNSUPPORTED_MEDIA_TYPE,
            f"the body is {media_type or 'of no type'}; send Content-Type: {MEDIA_TYPES[0]}, one request a line",
        )
    batch = _Batch()
    number = 0
    async for line in _lines(request, batch):
        number += 1
        if line.strip():
            _read(context, batch, number, line)
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
    if batch.wrong:
        raise RefusedError(of_faults(tuple(batch.wrong[:FAULTS_SHOWN])))
    if not batch.wanted or batch.pool is None:
        raise refused(Kind.INVALID_REQUEST, "there is no request in the body; send one a line")
    repeated = repeatable(idempotency_key, request, batch.digest.digest(), waits=False)
    admitted = await context.core.service.submit_all(key, batch.pool, batch.wanted, repeated)
    remember_rate(request, admitted.rate)
    structlog.contextvars.bind_contextvars(batch=len(admitted.job_ids))
    return JobsAccepted(ids=list(admitted.job_ids))


def _read(context: Context, batch: _Batch, number: int, line: bytes) -> None:
    """One line more; what is wrong with it is kept, as long as it will be shown."""
    if len(batch.wanted) == MAX_BATCH_JOBS:
        raise refused(Kind.BODY_TOO_LARGE, f"a batch has at most {MAX_BATCH_JOBS} requests; send several")
    try:
        asked = JobRequest.model_validate_json(line)
        new = new_job(context, asked)
    except ValidationError as error:
        found = faults(error.errors(include_url=False))
    except RefusedError as error:
        found = error.refusal.faults
    else:
        batch.pool = batch.pool or asked.pool
        found = ()
        if asked.pool != batch.pool:
            found = (Fault(("pool",), f"is {asked.pool}, and {batch.pool} in a line before; a batch is of one pool"),)
        batch.wanted.append(new)
    if len(batch.wrong) < FAULTS_SHOWN:
        batch.wrong += [Fault((f"line {number}", *fault.fields), fault.message, fault.code) for fault in found]


async def _lines(request: Request, batch: _Batch) -> AsyncIterator[bytes]:
    """The body's lines, as they come."""
    left, size = b"", 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BATCH_BYTES:
            raise refused(Kind.BODY_TOO_LARGE, f"the body is larger than {MAX_BATCH_BYTES} bytes")
        batch.digest.update(chunk)
        *whole, left = (left + chunk).split(b"\n")
        if len(left) > MAX_BODY_BYTES:
            raise refused(Kind.BODY_TOO_LARGE, f"a line is longer than {MAX_BODY_BYTES} bytes")
        for line in whole:
            yield line
    yield left
