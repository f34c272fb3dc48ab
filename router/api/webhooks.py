"""Webhooks as their receivers see them: the secrets that they verify with, and the body that they are sent."""

from __future__ import annotations

from fastapi import APIRouter

from router.api import ideogram
from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import Dialect, documented
from router.api.views import image_view, moment
from router.contract import BatchWebhook, EndedBatch, ErrorView, JobOutcome, JobWebhook, WebhookSecrets
from router.jobs import Job
from router.webhooks import Delivery

OVERLAP_MS = 86_400_000
"""How long the old secret signs along after a rotation."""
MAX_DETAIL = 4000
"""A webhook's body stays under 20 kB."""

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], responses=documented(Dialect.PROBLEM))


@router.get("/secrets", summary="What this key's webhooks are signed with")
async def secrets(context: InContext, key: Caller) -> WebhookSecrets:
    """The first time draws one. Keep it where your receiver verifies with it, and nowhere else."""
    return WebhookSecrets(secrets=list(await context.core.store.outbox.secrets(key.id)))


@router.post("/secrets", summary="Rotate the secret", status_code=201)
async def rotate(context: InContext, key: Caller) -> WebhookSecrets:
    """Each message is signed with the new secret and, for a day, with the old one too: receivers change in between."""
    return WebhookSecrets(secrets=list(await context.core.store.outbox.rotate(key.id, OVERLAP_MS)))


described = APIRouter(responses={"default": {"description": "Anything but 2xx and 410: it is tried again."}})
"""Not served: how FastAPI is told what an endpoint of the caller's will be sent."""


@described.post("job.ended", summary="A job has ended", status_code=204)
async def job_ended(body: JobWebhook) -> None:
    """Sent to the job's `webhook`, perhaps more than once, until you answer 2xx within 15 seconds; for three days and
    more, at growing intervals. 410 ends it for the URL. Verify `webhook-signature` with a Standard Webhooks library
    (or the `openai` client's `webhooks.verify_signature`) before you believe a word."""


@described.post("batch.ended", summary="A batch has ended", status_code=204)
async def batch_ended(body: BatchWebhook) -> None:
    """Sent to the batch's `webhook` as a job's is, in OpenAI's form: `client.webhooks.unwrap` reads it."""


async def body_of(context: Context, delivery: Delivery) -> bytes | None:
    """The delivery's event as it is sent now; None if its job is no longer kept."""
    if delivery.event.startswith("batch."):
        told = BatchWebhook(
            id=delivery.id,
            type=delivery.event,
            created_at=delivery.created_at // 1000,
            data=EndedBatch(id=delivery.subject),
        )
        return told.model_dump_json().encode()
    job = await context.core.store.job(delivery.subject)
    if job is None or job.finished_at is None:
        return None
    if delivery.url.endswith(ideogram.MARK):
        return ideogram.told(context, job).model_dump_json(exclude_unset=True).encode()
    event = JobWebhook(
        id=delivery.id,
        type=delivery.event,
        created_at=delivery.created_at // 1000,
        timestamp=moment(delivery.created_at),
        data=_outcome(context, job, job.finished_at),
    )
    return event.model_dump_json().encode()


def _outcome(context: Context, job: Job, finished_at: int) -> JobOutcome:
    return JobOutcome(
        id=job.id,
        pool=job.pool,
        state=job.state,
        attempt=job.attempt,
        created_at=moment(job.created_at),
        started_at=moment(job.started_at) if job.started_at is not None else None,
        finished_at=moment(finished_at),
        image=image_view(context, job),
        error=job.error and ErrorView(type=job.error.type, detail=job.error.detail[:MAX_DETAIL]),
    )
