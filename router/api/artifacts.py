"""Finished images as files over HTTP: to their owner by job, and to whoever holds a signed URL."""

from __future__ import annotations

from typing import Annotated, assert_never

import structlog
from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from router.api.context import Context, InContext
from router.api.errors import NAMED, Answers, Dialect, described
from router.api.refusals import Kind, refused
from router.artifacts import AtUrl, InFile
from router.contract import EDGE_ARTIFACTS
from router.jobs import Image, Job
from worker.contract import MEDIA_TYPES

router = APIRouter(tags=["images"])

IfNoneMatch = Annotated[str, Header(description="ETags that the caller already has.")]
SEND = "X-Accel-Redirect"
"""nginx sends the file that this header names, and the client never sees the header."""
REDIRECT_S = 600
"""How long a bucket's signed URL is good: long enough to begin the download that one was just sent to."""
PNG: Answers = {
    200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}, "description": "The image."},
    307: {"description": "The image is in a bucket; its `Location` is good for some minutes and wants no key."},
    304: {"description": "The caller has it."},
}


@router.head("/artifacts/{job_id}.png", include_in_schema=False)
@router.get(
    "/artifacts/{job_id}.png",
    summary="A finished image by its signed URL",
    response_class=FileResponse,
    responses={
        **PNG,
        **described(Dialect.PROBLEM, Kind.FORBIDDEN, *NAMED, Kind.INTERNAL, Kind.UNAVAILABLE),
    },
)
async def artifact(
    job_id: Annotated[str, Path(max_length=64)],
    expires: Annotated[int, Query(description="Seconds since the epoch.", ge=0, le=2**40)],
    signature: Annotated[str, Query(max_length=128)],
    context: InContext,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Needs no key: the signature is the permission. The links themselves come from the other routes."""
    if not context.links.allows(job_id, expires, signature):
        raise refused(Kind.FORBIDDEN, "this URL was not signed here; ask for the image again to get a good one")
    left = expires - int(context.clock())
    if left <= 0:
        raise refused(Kind.FORBIDDEN, "this URL has expired; ask for the image again to get a new one")
    job = await context.core.store.job(job_id)
    if job is None or job.image is None:
        raise refused(Kind.NOT_FOUND, f"there is no image of job {job_id}")
    structlog.contextvars.bind_contextvars(job=job.id)
    return await image_answer(context, job, job.image, if_none_match, max_age_s=left)


async def image_answer(context: Context, job: Job, image: Image, if_none_match: str, max_age_s: int) -> Response:
    """The image, or 304 for a caller who has it. An image never changes; only the permission ends.

    From a bucket by a redirect, from a folder by the edge where it may read there, and else by ourselves.
    """
    etag = f'"{image.sha256}"'
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={max_age_s}, immutable"}
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    match await context.core.service.image_place(job, REDIRECT_S):
        case AtUrl(url):
            # Asked for again before the signature runs out, and never kept beside the image itself.
            return RedirectResponse(url, 307, {"Cache-Control": f"private, max-age={REDIRECT_S // 2}"})
        case InFile(_, relative) if context.edge_sends_artifacts:
            return Response(headers=headers | {SEND: EDGE_ARTIFACTS + relative}, media_type=image.media_type)
        case InFile(path):
            return WholeFile(path, headers=headers, media_type=image.media_type)
        case unreachable:
            assert_never(unreachable)


class WholeFile(FileResponse):
    """Ignores `Range`, as RFC 9110 lets a server do: one image is a few megabytes, and Starlette answers a range
    that it does not like by itself, in plain text, which is no dialect of ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["Accept-Ranges"] = "none"
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)
