"""Webhooks: what owners are told, and how the operator sees that they were."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from router.contract.jobs import ErrorView, ImageView, JobState
from router.contract.names import JobId, PoolName
from worker.contract import Frozen


class WebhookType(StrEnum):
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"


class JobOutcome(Frozen):
    """How a job ended. Without its prompt, which may have 32,768 characters: `GET /v1/jobs/{id}` has it."""

    id: JobId
    pool: PoolName
    state: JobState
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime
    image: ImageView | None = None
    error: ErrorView | None = None


class JobWebhook(Frozen):
    """The body of a webhook. It may come twice; `id`, which is the header `webhook-id` too, tells.

    Read `data` as what was so at `timestamp`; an image's URL is good for a while from when this was sent.
    """

    id: str
    object: Literal["event"] = "event"
    type: WebhookType
    created_at: int = Field(description="Seconds since the epoch.")
    timestamp: datetime
    data: JobOutcome


class EndedBatch(Frozen):
    id: str


class BatchWebhook(Frozen):
    """The body of a batch's webhook, as OpenAI's clients read it. `GET /v1/batches/{id}` says the rest."""

    id: str
    object: Literal["event"] = "event"
    type: WebhookType
    created_at: int = Field(description="Seconds since the epoch.")
    data: EndedBatch


class WebhookSecrets(Frozen):
    """`whsec_…`, for a Standard Webhooks library. During a rotation there are several, the newest first, and each
    message is signed with all of them."""

    secrets: list[str]


class DeliveryState(StrEnum):
    """pending -> delivered | dead; a replay makes it pending again."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class DeliveryView(Frozen):
    """One webhook on its way, as the operator sees it. Times are UTC."""

    id: str
    url: str
    event: WebhookType
    subject: str = Field(description="The job or the batch that it tells of.")
    state: DeliveryState
    tries: int = Field(ge=0, description="Since it was promised, or last replayed.")
    created_at: datetime
    due_at: datetime
    ended_at: datetime | None
    status: int | None = Field(description="The receiver's last answer.")
    detail: str | None = Field(description="What was wrong with the last try.")


class Replayed(Frozen):
    count: int = Field(ge=0)
