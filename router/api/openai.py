"""OpenAI's Images API, good enough for their own clients. What its fields mean here is
`router.contract.dialects.images`'."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request
from fastapi.openapi.models import Example
from fastapi.responses import Response, StreamingResponse

from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import ADMISSION, BODY, WAITING, Dialect, documented
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.image_stream import ImageCompleted, streamed
from router.api.images import ImagesResponse, data_by_url, data_inline, head_of, spliced
from router.api.models import resolved
from router.api.refusals import Kind, refused
from router.api.requests import json_only
from router.api.waiting import make, take_on
from router.choice import Terms
from router.contract.dialects.images import MODEL, NAMES, ImagesRequest
from router.jobs import Job

ABSENT = {"/v1/images/edits": "edits images", "/v1/images/variations": "varies images"}
"""What OpenAI has and these weights cannot do."""
EXAMPLES: dict[str, Example] = {
    "one": {"summary": "One image", "value": {"prompt": "a letterpress print shop at night", "size": "1024x1024"}},
    "several": {
        "summary": "Four drafts as WebP, by URL",
        "value": {
            "model": MODEL,
            "prompt": "a letterpress print shop at night",
            "n": 4,
            "quality": "low",
            "output_format": "webp",
            "response_format": "url",
        },
    },
}

router = APIRouter(prefix="/v1/images", tags=["openai"])
OPENAI = partial(documented, Dialect.OPENAI)


@router.post(
    "/generations",
    summary="Make images and wait for them",
    dependencies=[Depends(json_only)],
    response_model=ImagesResponse,
    responses={
        200: {
            "description": "The images; with `stream`, an event for each (data: ImageCompleted).",
            "content": {"text/event-stream": {"schema": ImageCompleted.model_json_schema()}},
        },
        **OPENAI(*BODY, Kind.MODEL_NOT_FOUND, *ADMISSION, *WAITING),
    },
)
async def generations(
    body: Annotated[ImagesRequest, Body(openapi_examples=EXAMPLES)],
    request: Request,
    context: InContext,
    key: Caller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Waits as long as it takes; closing the connection cancels the images."""
    terms = Terms(model=await resolved(context, body.pool, body.model))
    wanted = body.wanted(context.draw_seed())
    repeated = repeatable(idempotency_key, request, body, waits=True)
    if body.stream:
        taken = await take_on(context, request, key, body.pool, wanted, NAMES, terms=terms, repeated=repeated)
        events = streamed(context, taken, body.identifier)
        # Begun before it is handed on: from here on its own end cleans up, whoever drops it.
        first = await anext(events)
        return StreamingResponse(
            _after(first, events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    jobs = await make(context, request, key, body.pool, wanted, NAMES, terms=terms, repeated=repeated)
    head = head_of(jobs, int(context.clock()), body.identifier)
    # One after another: ten threads that want the interpreter's lock keep the event loop from it.
    images = [_data(context, job, by_url=body.by_url) for job in jobs]
    pieces = [piece async for piece in spliced(head, images)]
    length = {"Content-Length": str(sum(map(len, pieces)))}
    return StreamingResponse(_each(pieces), media_type="application/json", headers=length)


async def _data(context: Context, job: Job, *, by_url: bool) -> AsyncIterator[bytes]:
    """The job's ImageData as JSON, in pieces; its bytes are read when it is their turn."""
    if by_url:
        pieces = data_by_url(job, context.links.url(job.id, context.clock()))
    else:
        pieces = data_inline(job, await context.core.service.image_bytes(job))
    async for piece in pieces:
        yield piece


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _each(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@router.post("/edits", summary="Not served", status_code=501, response_model=None, responses=OPENAI(Kind.NOT_SERVED))
@router.post(
    "/variations", summary="Not served", status_code=501, response_model=None, responses=OPENAI(Kind.NOT_SERVED)
)
async def absent(request: Request, _: Caller) -> None:
    """These weights draw from text alone."""
    path = request.url.path
    raise refused(
        Kind.NOT_SERVED,
        f"nothing here {ABSENT[path]}: the weights draw from text alone; use POST /v1/images/generations",
    )
