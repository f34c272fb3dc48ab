"""The native dialect: jobs that outlive the connection that asked for them (`router.contract`)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Annotated, TypeVar

import structlog
from fastapi import APIRouter, Body, Depends, Header, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import AwareDatetime, ValidationError

from router.api.artifacts import PNG, IfNoneMatch, image_answer
from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import ADMISSION, BODY, NAMED, Dialect, documented
from router.api.explain import Fault
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.models import wished
from router.api.rate import remember_rate
from router.api.refusals import Kind, RefusedError, of_faults, of_job, of_values, refused
from router.api.requests import json_only
from router.api.views import view
from router.choice import Terms
from router.contract import JobRequest, JobsPage, JobState, JobView, PoolName, Progress
from router.jobs import Job, NewJob
from router.store import ApiKey, JobFilter
from worker.contract import GenerationRequest

HEARTBEAT_S = 15.0
"""A comment this often keeps every proxy and client on the way from calling the stream dead."""
OWNER_CACHE_S = 365 * 86_400
EXAMPLE = {"prompt": "a letterpress print shop at night", "width": 1024, "height": 768, "preset": "V4_DEFAULT_20"}

TERMS = ("priority", "deadline", "tier", "model")
"""A JobRequest's fields that say nothing of the image."""

LISTED, MAX_LISTED = 50, 500

T = TypeVar("T")

Wanted = Annotated[JobRequest, Body(examples=[EXAMPLE])]

LastEventId = Annotated[str | None, Header(max_length=64, description="The id of the last event that was seen.")]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
NATIVE = partial(documented, Dialect.PROBLEM)


@router.post(
    "",
    status_code=202,
    summary="Ask for an image",
    dependencies=[Depends(json_only)],
    responses=NATIVE(*BODY, *ADMISSION),
)
async def submit(
    body: Wanted,
    request: Request,
    response: Response,
    context: InContext,
    key: Caller,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """The job is committed before this answers; `Location` says where to look for it."""
    wanted = new_job(context, body)
    service = context.core.service
    repeated = repeatable(idempotency_key, request, body, waits=False)
    admitted = await service.submit_all(key, body.pool, [wanted], repeated)
    remember_rate(request, admitted.rate)
    (job,) = await service.all_of(admitted.job_ids)
    structlog.contextvars.bind_contextvars(job=job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return view(context, job)


@router.get("", summary="Your jobs", responses=NATIVE(Kind.INVALID_REQUEST))
async def jobs(  # noqa: PLR0917 - FastAPI hands them over by name
    context: InContext,
    key: Caller,
    state: JobState | None = None,
    pool: PoolName | None = None,
    batch: Annotated[str | None, Query(max_length=64, description="Those of this batch.")] = None,
    created_after: Annotated[AwareDatetime | None, Query(description="Made then, or later.")] = None,
    created_before: AwareDatetime | None = None,
    after: Annotated[str | None, Query(max_length=64, description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = LISTED,
) -> JobsPage:
    """The newest first. A page stays what it is while new jobs come in."""
    wanted = JobFilter(state, pool, batch, _milliseconds(created_after), _milliseconds(created_before))
    found = await context.core.store.listed(key.id, wanted, after, limit + 1)
    latest = context.core.notices.latest_progress
    return JobsPage(data=[view(context, job, latest(job.id)) for job in found[:limit]], has_more=len(found) > limit)


@router.get("/{job_id}", summary="How a job is doing", responses=NATIVE(*NAMED))
async def read(job_id: str, context: InContext, key: Caller) -> JobView:
    job = await _own(context, key, job_id)
    return view(context, job, context.core.notices.latest_progress(job.id))


@router.delete("/{job_id}", summary="Cancel a job", responses=NATIVE(*NAMED))
async def cancel(job_id: str, context: InContext, key: Caller) -> JobView:
    """At once while it waits, between two steps while it runs; a job that has ended stays as it is."""
    job = await context.core.service.cancel(key, job_id)
    if job is None:
        raise _nothing(job_id)
    return view(context, job, context.core.notices.latest_progress(job.id))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    summary="Try a job again",
    responses=NATIVE(*NAMED, Kind.NOT_RETRYABLE, *ADMISSION),
)
async def retry(
    job_id: str,
    request: Request,
    response: Response,
    context: InContext,
    key: Caller,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """The same image again as a new job, which names this one: how a job has ended, and who was told so, stays as it
    is. A deadline that has passed is left out."""
    job = await _own(context, key, job_id)
    if not job.state.ended or job.image is not None:
        raise refused(Kind.NOT_RETRYABLE, f"job {job.id} is {job.state}; what failed, expired or was cancelled can be")
    deadline = job.terms.deadline
    if deadline is not None and deadline <= context.clock() * 1000:
        deadline = None
    wanted = NewJob(job.request, replace(job.terms, deadline=deadline), job.webhook, retry_of=job.id)
    repeated = repeatable(idempotency_key, request, b"", waits=False)
    admitted = await context.core.service.submit_all(key, job.pool, [wanted], repeated)
    remember_rate(request, admitted.rate)
    (new,) = await context.core.service.all_of(admitted.job_ids)
    structlog.contextvars.bind_contextvars(job=new.id)
    response.headers["Location"] = f"/v1/jobs/{new.id}"
    return view(context, new)


@router.head("/{job_id}/image", include_in_schema=False)
@router.get(
    "/{job_id}/image",
    summary="A job's finished image",
    response_class=FileResponse,
    responses={**PNG, **NATIVE(*NAMED, Kind.NOT_FINISHED, Kind.NO_IMAGE, Kind.CANCELLED, Kind.EXPIRED)},
)
async def image(job_id: str, context: InContext, key: Caller, if_none_match: IfNoneMatch = "") -> Response:
    job = await _own(context, key, job_id)
    if job.image is not None:
        return await image_answer(context, job, job.image, if_none_match, OWNER_CACHE_S)
    if job.state.ended:
        why = of_job(job)
        told = why.kind if job.state in (JobState.CANCELLED, JobState.EXPIRED) else Kind.NO_IMAGE
        raise refused(told, why.detail)
    raise refused(Kind.NOT_FINISHED, f"job {job_id} is {job.state}; its events say when the image is there")


@router.get(
    "/{job_id}/events",
    summary="A job's progress, as it happens",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events, each with a JobView."},
        204: {"description": "The job has ended, and the event of `Last-Event-ID` said so: no need to ask again."},
        **NATIVE(*NAMED),
    },
)
async def events(job_id: str, context: InContext, key: Caller, last_event_id: LastEventId = None) -> Response:
    """The first event says how the job is now, the last how it ended. A stream may be opened again at any time; with
    `Last-Event-ID`, which browsers send by themselves, only what is newer comes."""
    job = await _own(context, key, job_id)
    seen = None if last_event_id is None else _seen(last_event_id)
    if seen is not None and job.state.ended and _moment(job, None) <= seen:
        return Response(status_code=204)
    return StreamingResponse(
        stream(context, job, HEARTBEAT_S, seen),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


Moment = tuple[int, int, int]
"""Of a job's life: its attempt, whether that runs, is over, or is the last; its step. They only ever grow."""


def _moment(job: Job, progress: Progress | None) -> Moment:
    phase = 2 if job.state.ended else int(job.state is JobState.QUEUED)
    running = progress is not None and job.state is JobState.RUNNING and progress.attempt == job.attempt
    return job.attempt, phase, progress.step + 1 if progress is not None and running else 0


def _seen(event_id: str) -> Moment | None:
    """An event's id as it was sent; None for what is none of ours."""
    match = re.fullmatch(r"([0-9]{1,9})-([012])-([0-9]{1,9})", event_id)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


async def stream(context: Context, job: Job, heartbeat_s: float, seen: Moment | None = None) -> AsyncGenerator[str]:
    """Server-sent events until the job ends or the router stops; a client opens the stream again then. What was
    `seen` is not said again."""
    async with aclosing(context.core.service.watch(job)) as watched:
        closing = asyncio.create_task(context.closing.wait())
        coming = asyncio.create_task(_next(watched))
        try:
            yield "retry: 1000\n\n"
            while not closing.done():
                # By wait, not by a timeout: that would cancel the generator that is waited for.
                await asyncio.wait({coming, closing}, timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    if not closing.done():
                        yield ": still here\n\n"
                    continue
                happened = coming.result()
                if happened is None:
                    return
                coming = asyncio.create_task(_next(watched))
                event, now, progress = happened
                at = _moment(now, progress)
                if seen is None or at > seen:
                    said = view(context, now, progress).model_dump_json()
                    yield f"event: {event}\nid: {'-'.join(map(str, at))}\ndata: {said}\n\n"
        finally:
            for task in (coming, closing):
                task.cancel()
            await asyncio.gather(coming, closing, return_exceptions=True)


async def _next(watched: AsyncIterator[T]) -> T | None:
    return await anext(watched, None)


def new_job(context: Context, body: JobRequest) -> NewJob:
    """What was asked, its seed drawn. Raises RefusedError where the contract does not let it pass."""
    if body.webhook is not None:
        refuse_plain_webhook(context, body.webhook)
    fields = body.model_dump(exclude={"pool", "webhook", *TERMS})
    seed = context.draw_seed() if body.seed is None else body.seed
    try:
        return NewJob(GenerationRequest.model_validate({**fields, "seed": seed}), _terms(context, body), body.webhook)
    except ValidationError as error:
        raise of_values(error) from error


def refuse_plain_webhook(context: Context, webhook: str) -> None:
    """Raises RefusedError for a URL without TLS, unless the operator has named addresses that need none."""
    if webhook.startswith("http:") and not context.plain_webhooks:
        fault = Fault(("webhook",), "must be https: webhooks go over the public internet")
        raise RefusedError(of_faults((fault,)))


def _milliseconds(at: AwareDatetime | None) -> int | None:
    """Since the epoch; what was before is the epoch."""
    return None if at is None else max(0, int(at.timestamp() * 1000))


def _terms(context: Context, body: JobRequest) -> Terms:
    deadline = None if body.deadline is None else int(body.deadline.timestamp() * 1000)
    if deadline is not None and deadline <= context.clock() * 1000:
        raise RefusedError(of_faults((Fault(("deadline",), "has passed already"),)))
    return Terms(body.priority, deadline, body.tier, wished(context, body.model))


async def _own(context: Context, key: ApiKey, job_id: str) -> Job:
    job = await context.core.service.get(key, job_id)
    if job is None:
        raise _nothing(job_id)
    structlog.contextvars.bind_contextvars(job=job.id)
    return job


def _nothing(job_id: str) -> RefusedError:
    # Another key's job is no job: whether an id exists is nobody else's business.
    return refused(Kind.NOT_FOUND, f"there is no job {job_id[:64]} of this API key")
