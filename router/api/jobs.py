"""The native dialect: jobs that outlive the connection that asked for them (`router.contract`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, TypeVar

import structlog
from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import ValidationError

from router.api.artifacts import PNG, PROBLEM, IfNoneMatch, image_answer
from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.explain import Fault
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.rate import remember_rate
from router.api.refusals import Kind, RefusedError, of_faults, of_job, of_values, refused
from router.api.requests import json_only
from router.api.views import view
from router.choice import Terms
from router.contract import JobRequest, JobState, JobView
from router.jobs import Job, NewJob
from router.store import ApiKey
from worker.contract import GenerationRequest

HEARTBEAT_S = 15.0
"""A comment this often keeps every proxy and client on the way from calling the stream dead."""
OWNER_CACHE_S = 365 * 86_400
EXAMPLE = {"prompt": "a letterpress print shop at night", "width": 1024, "height": 768, "preset": "V4_DEFAULT_20"}

TERMS = ("priority", "deadline", "tier", "model")
"""A JobRequest's fields that say nothing of the image."""

T = TypeVar("T")

Wanted = Annotated[JobRequest, Body(examples=[EXAMPLE])]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses={"4XX": PROBLEM, "5XX": PROBLEM})


@router.post("", status_code=202, summary="Ask for an image", dependencies=[Depends(json_only)])
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


@router.get("/{job_id}", summary="How a job is doing")
async def read(job_id: str, context: InContext, key: Caller) -> JobView:
    job = await _own(context, key, job_id)
    return view(context, job, context.core.notices.latest_progress(job.id))


@router.delete("/{job_id}", summary="Cancel a job")
async def cancel(job_id: str, context: InContext, key: Caller) -> JobView:
    """At once while it waits, between two steps while it runs; a job that has ended stays as it is."""
    job = await context.core.service.cancel(key, job_id)
    if job is None:
        raise _nothing(job_id)
    return view(context, job, context.core.notices.latest_progress(job.id))


@router.head("/{job_id}/image", include_in_schema=False)
@router.get(
    "/{job_id}/image",
    summary="A job's finished image",
    response_class=FileResponse,
    responses={**PNG, 409: {**PROBLEM, "description": "There is no image: not yet, or not any more to come."}},
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
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events, each with a JobView."}},
)
async def events(job_id: str, context: InContext, key: Caller) -> StreamingResponse:
    """The first event says how the job is now, the last how it ended. A stream may be opened again at any time."""
    job = await _own(context, key, job_id)
    return StreamingResponse(
        stream(context, job, HEARTBEAT_S),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def stream(context: Context, job: Job, heartbeat_s: float) -> AsyncGenerator[str]:
    """Server-sent events until the job ends or the router stops; a client opens the stream again then."""
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
                yield f"event: {event}\ndata: {view(context, now, progress).model_dump_json()}\n\n"
        finally:
            for task in (coming, closing):
                task.cancel()
            await asyncio.gather(coming, closing, return_exceptions=True)


async def _next(watched: AsyncIterator[T]) -> T | None:
    return await anext(watched, None)


def new_job(context: Context, body: JobRequest) -> NewJob:
    """What was asked, its seed drawn. Raises RefusedError where the contract does not let it pass."""
    if body.webhook is not None and body.webhook.startswith("http:") and not context.plain_webhooks:
        fault = Fault(("webhook",), "must be https: webhooks go over the public internet")
        raise RefusedError(of_faults((fault,)))
    fields = body.model_dump(exclude={"pool", "webhook", *TERMS})
    seed = context.draw_seed() if body.seed is None else body.seed
    try:
        return NewJob(GenerationRequest.model_validate({**fields, "seed": seed}), _terms(context, body), body.webhook)
    except ValidationError as error:
        raise of_values(error) from error


def _terms(context: Context, body: JobRequest) -> Terms:
    deadline = None if body.deadline is None else int(body.deadline.timestamp() * 1000)
    if deadline is not None and deadline <= context.clock() * 1000:
        raise RefusedError(of_faults((Fault(("deadline",), "has passed already"),)))
    return Terms(body.priority, deadline, body.tier, body.model)


async def _own(context: Context, key: ApiKey, job_id: str) -> Job:
    job = await context.core.service.get(key, job_id)
    if job is None:
        raise _nothing(job_id)
    structlog.contextvars.bind_contextvars(job=job.id)
    return job


def _nothing(job_id: str) -> RefusedError:
    # Another key's job is no job: whether an id exists is nobody else's business.
    return refused(Kind.NOT_FOUND, f"there is no job {job_id[:64]} of this API key")
