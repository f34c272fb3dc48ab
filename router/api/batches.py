"""OpenAI's Batches API: a file of image requests, answered in files within a window."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Body, Depends, Path, Query, Request
from pydantic import AfterValidator, Field, StringConstraints, field_validator

from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import ADMISSION, BODY, NAMED, Dialect, documented
from router.api.explain import Fault
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.jobs import refuse_plain_webhook
from router.api.lists import After, Listed, Page
from router.api.rate import remember_rate
from router.api.refusals import Kind, RefusedError, of_faults, refused
from router.api.requests import json_only
from router.batches import PURPOSE_INPUT, Batch, BatchState, NewBatch
from router.contract import BATCH, PoolName, WebhookUrl
from router.store import ApiKey
from worker.contract import Frozen

ENDPOINT = "/v1/images/generations"
UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
MAX_WINDOW_MS = 30 * UNITS_MS["d"]
KEPT_S = 30 * 86_400
"""How long output is kept unless told otherwise, as OpenAI keeps a batch's files."""
MAX_METADATA = 16
MAX_LISTED, LISTED = 100, 20
LINKS = {
    name: {
        "description": said,
        "operationRef": f"#/paths/~1v1~1batches~1{{batch_id}}{path}",
        "parameters": {"batch_id": "$response.body#/id"},
    }
    for name, path, said in (("read", "/get", "How it is doing."), ("cancel", "~1cancel/post", "Cancel it."))
}
EXAMPLE = {"input_file_id": "file_01kb2s8d5w3j4k5m6n7p8q9rst", "endpoint": ENDPOINT, "completion_window": "24h"}

BatchId = Annotated[str, Path(max_length=64)]
router = APIRouter(prefix="/v1/batches", tags=["openai"])
OPENAI = partial(documented, Dialect.OPENAI)


def window_ms(window: str) -> int:
    """Raises ValueError for what is none, or too long."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", window)
    if match is None or (length := int(match[1]) * UNITS_MS[match[2]]) > MAX_WINDOW_MS:
        raise ValueError("must be a time such as 24h, 90m or 3d, at most 30d")
    return length


def _window(window: str) -> str:
    window_ms(window)
    return window


class ExpiresAfter(Frozen):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(strict=True, ge=3600, le=30 * 86_400)]


class BatchRequest(Frozen):
    """`pool` and `webhook` are more than OpenAI has (the clients' `extra_body`)."""

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    endpoint: Literal["/v1/images/generations"]
    completion_window: Annotated[str, AfterValidator(_window)] = Field(
        description="What is not begun by then has expired: 24h, as OpenAI has it, or any other time up to 30d."
    )
    metadata: (
        dict[
            Annotated[str, StringConstraints(max_length=64)],
            Annotated[str, StringConstraints(max_length=512)],
        ]
        | None
    ) = Field(default=None, description="At most 16 pairs, given back as they are.")
    output_expires_after: ExpiresAfter | None = None
    pool: PoolName = BATCH
    webhook: WebhookUrl | None = Field(
        default=None, description="Told by POST when the batch has ended, signed as Standard Webhooks are."
    )

    @field_validator("metadata")
    @classmethod
    def _few(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        if metadata is not None and len(metadata) > MAX_METADATA:
            raise ValueError(f"has {len(metadata)} pairs; at most {MAX_METADATA} are kept")
        return metadata


class BatchFault(Frozen):
    code: str
    line: int | None = Field(description="Of the input file; the first is 1.")
    message: str
    param: str | None


class BatchFaults(Frozen):
    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(Frozen):
    total: int
    completed: int
    failed: int


class BatchObject(Listed):
    """Times are seconds since the epoch."""

    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(Page[BatchObject]):
    pass


@router.post(
    "",
    summary="Make a batch of a file",
    dependencies=[Depends(json_only)],
    responses={200: {"links": LINKS}, **OPENAI(*BODY, *ADMISSION)},
)
async def create(
    body: Annotated[BatchRequest, Body(examples=[EXAMPLE])],
    request: Request,
    context: InContext,
    key: Caller,
    idempotency_key: IdempotencyKey = None,
) -> BatchObject:
    """Committed before this answers; validated right after. The window is the deadline of every image."""
    if body.webhook is not None:
        refuse_plain_webhook(context, body.webhook)
    context.core.service.check_pool(key, body.pool)
    file = await context.core.store.batches.file(key.id, body.input_file_id)
    if file is None or file.purpose != PURPOSE_INPUT:
        said = f"there is no file {body.input_file_id[:64]} of this API key with purpose {PURPOSE_INPUT}"
        raise RefusedError(of_faults((Fault(("input_file_id",), said),)))
    await context.core.service.check_pool_takes(body.pool)
    kept = body.output_expires_after
    new = NewBatch(
        pool=body.pool,
        endpoint=body.endpoint,
        input_file_id=file.id,
        window=body.completion_window,
        window_ms=window_ms(body.completion_window),
        output_ms=1000 * (KEPT_S if kept is None else kept.seconds),
        metadata=body.metadata,
        webhook=body.webhook,
    )
    repeated = repeatable(idempotency_key, request, body, waits=False)
    batch, rate = await context.core.store.batches.create(key, new, repeated)
    remember_rate(request, rate)
    structlog.contextvars.bind_contextvars(batch=batch.id)
    context.batch_news()
    return described(batch)


@router.get("", summary="Your batches", responses=OPENAI(Kind.INVALID_REQUEST))
async def batches(
    context: InContext,
    key: Caller,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = LISTED,
) -> BatchList:
    """The newest first."""
    found = await context.core.store.batches.batches(key.id, after, limit + 1)
    return BatchList.of([described(batch) for batch in found], limit)


@router.get("/{batch_id}", summary="How a batch is doing", responses=OPENAI(*NAMED))
async def read(batch_id: BatchId, context: InContext, key: Caller) -> BatchObject:
    return described(await _own(context, key, batch_id))


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses=OPENAI(*NAMED))
async def cancel(batch_id: BatchId, context: InContext, key: Caller) -> BatchObject:
    """What waits is cancelled, what runs is finished; then it is cancelled, and its files hold what was made: all of it
    if it was finalizing already."""
    batch = await context.core.store.batches.ask_to_cancel(key.id, batch_id)
    if batch is None:
        raise _nothing(batch_id)
    if batch.state not in (BatchState.CANCELLING, BatchState.CANCELLED):
        raise refused(Kind.INVALID_REQUEST, f"batch {batch.id} is {batch.state} and can no longer be cancelled")
    context.batch_news()
    return described(batch)


def described(batch: Batch) -> BatchObject:
    ended = {state: batch.at.ended if batch.state is state else None for state in BatchState}
    faults = [
        BatchFault(code=fault.code, line=fault.line, message=fault.message, param=fault.param) for fault in batch.faults
    ]
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=BatchFaults(data=faults) if faults else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.window,
        status=batch.state,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.at.created // 1000,
        in_progress_at=_seconds(batch.at.in_progress),
        expires_at=batch.at.expires // 1000,
        finalizing_at=_seconds(batch.at.finalizing),
        completed_at=_seconds(ended[BatchState.COMPLETED]),
        failed_at=_seconds(ended[BatchState.FAILED]),
        expired_at=_seconds(ended[BatchState.EXPIRED]),
        cancelling_at=_seconds(batch.at.cancelling),
        cancelled_at=_seconds(ended[BatchState.CANCELLED]),
        request_counts=RequestCounts(
            total=batch.counts.total, completed=batch.counts.completed, failed=batch.counts.failed
        ),
        metadata=None if batch.metadata is None else dict(batch.metadata),
    )


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000


async def _own(context: Context, key: ApiKey, batch_id: str) -> Batch:
    batch = await context.core.store.batches.batch(key.id, batch_id)
    if batch is None:
        raise _nothing(batch_id)
    structlog.contextvars.bind_contextvars(batch=batch.id)
    return batch


def _nothing(batch_id: str) -> RefusedError:
    return refused(Kind.NOT_FOUND, f"there is no batch {batch_id[:64]} of this API key")
