"""Native jobs: what is asked for, and how it is told of."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field, HttpUrl, TypeAdapter, ValidationError

from router.contract.names import INTERACTIVE, JobId, ModelName, PoolName, Priority, Tier
from worker.captions import Caption
from worker.contract import (
    EncodingQuality,
    Frozen,
    GuidanceSchedule,
    ImageFormat,
    Preset,
    Prompt,
    ScheduleMean,
    ScheduleWidth,
    Seed,
    Side,
    Steps,
)


class JobState(StrEnum):
    """queued -> running -> succeeded | failed | cancelled; a lost attempt goes back to queued.

    A job that still waits at its deadline is expired.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


def _webhook(value: str) -> str:
    """As it will be asked for: the name in ASCII, the scheme in small letters."""
    if len(value) > MAX_URL:
        raise ValueError(f"a webhook's URL has at most {MAX_URL} characters")
    try:
        url = _URL.validate_python(value)
    except ValidationError as error:
        raise ValueError("must be a URL such as https://example.com/hook") from error
    if url.username or url.password:
        raise ValueError("must hold no name and no password: webhooks are signed, verify that instead")
    if url.fragment:
        raise ValueError("must hold no #fragment: it would not be sent")
    return str(url)


MAX_URL = 2048
_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)
WebhookUrl = Annotated[str, AfterValidator(_webhook)]


class JobRequest(Frozen):
    """One image asked for. `seed` absent: the router draws one and says which.

    Among the jobs of one API key and pool, higher `priority` goes first, then the earlier `deadline`; between keys
    neither counts. `deadline` is the last moment at which work on the image may begin: what waits longer ends as
    expired, what runs by then is finished. `tier` and `model` are what the worker must be; absent (or, of
    `model`, a name that hosted models have): any of the pool.

    `prompt` and `caption`, `steps` and `preset` exclude one another; `guidance` (an entry for each step, first
    step first), `mu` and `std` go with `steps` (the worker contract's rules, checked when the job is made).
    """

    prompt: Prompt | None = None
    caption: Caption | None = Field(default=None, description="A structured caption, instead of a prompt.")
    width: Side = 1024
    height: Side = 1024
    steps: Steps | None = None
    preset: Preset | None = None
    guidance: GuidanceSchedule | None = None
    mu: ScheduleMean | None = None
    std: ScheduleWidth | None = None
    seed: Seed | None = None
    format: ImageFormat = ImageFormat.PNG
    quality: EncodingQuality | None = None
    pool: PoolName = INTERACTIVE
    priority: Priority = 0
    deadline: AwareDatetime | None = None
    tier: Tier | None = None
    model: ModelName | None = None
    webhook: WebhookUrl | None = Field(
        default=None, description="Told by POST when the job has ended, signed as Standard Webhooks are."
    )


MAX_BATCH_JOBS = 50_000
MAX_BATCH_BYTES = 200 * 2**20
"""OpenAI's bounds on a batch, too."""


class JobsAccepted(Frozen):
    """The jobs of a batch, in the order of its lines."""

    ids: list[JobId]


class Progress(Frozen):
    """Denoising step `step` of `steps` in attempt `attempt`."""

    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    steps: Steps


class ImageView(Frozen):
    """A finished image: where it is and what it is."""

    url: str
    sha256: str
    bytes: int = Field(gt=0)
    media_type: str
    width: Side
    height: Side
    seed: Seed
    is_image_safe: bool = Field(
        default=True, description="False: it looks like the grey picture that the weights draw for what they refuse."
    )
    safety_reason: str = ""
    gpu_s: float | None = Field(
        default=None,
        ge=0,
        description="Seconds that a GPU worked at it, in the attempt that made it. Absent of old images.",
    )


class ErrorView(Frozen):
    type: str
    detail: str


class JobView(Frozen):
    """A job as its owner sees it. Times are UTC."""

    id: JobId
    pool: PoolName
    state: JobState
    prompt: Prompt | None
    caption: Caption | None = None
    width: Side
    height: Side
    steps: Steps | None
    preset: Preset | None
    guidance: GuidanceSchedule | None = None
    mu: ScheduleMean | None = None
    std: ScheduleWidth | None = None
    seed: Seed
    priority: Priority = 0
    deadline: datetime | None = None
    tier: Tier | None = None
    model: ModelName | None = None
    attempt: int = Field(ge=0, description="Attempts begun; 0 while the job has never met a worker.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    image: ImageView | None = None
    webhook: str | None = None
    retry_of: JobId | None = Field(default=None, description="The job that this one is another chance of.")
    batch: str | None = Field(default=None, description="The batch that it is of.")
    error: ErrorView | None = None


class JobsPage(Frozen):
    """The newest first. With `has_more`, ask again with `after` set to the last one's id."""

    data: list[JobView]
    has_more: bool


class JobEvent(StrEnum):
    """Names of the events on /v1/jobs/{id}/events; the stream ends after one of the last four."""

    QUEUED = "queued"
    RUNNING = "running"
    PROGRESS = "progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
