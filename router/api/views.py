"""A job as its owner sees it: the native dialect's view of the core's values."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urldefrag

from router.api.context import Context
from router.contract import ErrorView, ImageView, JobView, Progress
from router.jobs import Job


def view(context: Context, job: Job, progress: Progress | None = None) -> JobView:
    """`progress` is shown only while the job runs the attempt that made it."""
    request = job.request
    return JobView(
        id=job.id,
        pool=job.pool,
        state=job.state,
        prompt=request.prompt,
        caption=request.caption,
        width=request.width,
        height=request.height,
        steps=request.steps,
        preset=request.preset,
        guidance=request.guidance,
        mu=request.mu,
        std=request.std,
        seed=request.seed,
        priority=job.terms.priority,
        deadline=moment(job.terms.deadline) if job.terms.deadline is not None else None,
        tier=job.terms.tier,
        model=job.terms.model,
        attempt=job.attempt,
        created_at=moment(job.created_at),
        started_at=moment(job.started_at) if job.started_at is not None else None,
        finished_at=moment(job.finished_at) if job.finished_at is not None else None,
        progress=progress if progress and not job.state.ended and progress.attempt == job.attempt else None,
        image=image_view(context, job),
        webhook=job.webhook and urldefrag(job.webhook).url,  # a dialect marks its own by a fragment
        retry_of=job.retry_of,
        batch=job.place and job.place.batch_id,
        error=job.error and ErrorView(type=job.error.type, detail=job.error.detail),
    )


def image_view(context: Context, job: Job) -> ImageView | None:
    """With a URL that is signed now."""
    request, image = job.request, job.image
    if image is None:
        return None
    return ImageView(
        url=context.links.url(job.id, context.clock()),
        sha256=image.sha256,
        bytes=image.bytes,
        media_type=image.media_type,
        width=request.width,
        height=request.height,
        seed=request.seed,
        is_image_safe=not image.suspicion,
        safety_reason=image.suspicion,
        gpu_s=None if job.gpu_ms is None else job.gpu_ms / 1000,
    )


def moment(at_ms: int) -> datetime:
    """Milliseconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
