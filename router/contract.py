"""The router's own schemas: native jobs for its users, workers for its operator.

`infra` and the client import this module and nothing else of the router. The foreign dialects
(seed-style, OpenAI) have their schemas beside their routes in `router.api`; all of them become a
`JobRequest`.

Public app, on a unix socket behind the edge, `Authorization: Bearer <api key>`:
    POST   /v1/jobs                JobRequest -> 202 JobView, with Location
    POST   /v1/jobs/batch          JobRequests, one a line -> 202 JobsAccepted: all or none
    GET    /v1/jobs                JobsPage: the key's own; ?state=, ?pool=, ?batch=, ?created_after=, ?after=, …
    GET    /v1/jobs/{id}           JobView
    DELETE /v1/jobs/{id}           cancel -> JobView
    POST   /v1/jobs/{id}/retry     the same again as a new job -> 202 JobView, with Location
    GET    /v1/jobs/{id}/image     the image's bytes
    GET    /v1/jobs/{id}/events    server-sent events; each carries a JobView, its name the JobEvent
    GET    /v1/webhooks/secrets    WebhookSecrets: what the key's webhooks are signed with
    POST   /v1/webhooks/secrets    a new one -> WebhookSecrets; the old one signs along for a day
    GET    /healthz                Health, no key
    GET    /readyz                 Readiness, no key; ?pool= wants a ready worker of that pool too

Admin app, on 127.0.0.1 only; reading is free to whoever is on the host, changing wants
`Authorization: Bearer <admin key>`:
    GET    /workers                list[WorkerView]
    PUT    /workers/{name}         WorkerRegistration -> WorkerView; again with the same body is the same
    GET    /workers/{name}         WorkerView
    POST   /workers/{name}/drain   no new job; what runs is finished -> WorkerView
    POST   /workers/{name}/release out of quarantine -> WorkerView
    DELETE /workers/{name}         removed; gone is success
    GET    /pools                  list[PoolView]
    PUT    /pools/{name}/expected  PoolExpected: take jobs on though no worker is registered yet
    GET    /keys                   list[KeyView]
    POST   /keys                   KeyRequest -> 201 NewKey, the one time that the key itself is shown
    PUT    /keys/{name}/limits     KeyLimitsView -> KeyView
    DELETE /keys/{name}            revoked; again is the same -> KeyView
    GET    /keys/{name}/usage      list[UsageView], one a day; ?since=2026-11-01
    GET    /webhooks               list[DeliveryView]; ?state=, ?limit=
    POST   /webhooks/{id}/replay   due now -> DeliveryView
    POST   /webhooks/replay        all dead ones -> Replayed
    GET    /tunnels                TunnelsView
    GET    /healthz  /readyz  /metrics
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import date, datetime
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    HttpUrl,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

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

INTERACTIVE = "interactive"
BATCH = "batch"
MAX_PORT = 65_535
SOCKET_PATH_MAX = 107
"""In bytes: `sun_path` holds 108 with its closing zero (unix(7))."""

EDGE_ARTIFACTS = "/.artifacts/"
"""Below this the edge has the artifacts' folder, for the router to send files from and for nobody to ask."""

PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
WorkerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Priority = Annotated[int, Field(strict=True, ge=-100, le=100)]
Tier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-z]{26}$")]


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
    expired, what runs by then is finished. `tier` and `model` are what the worker must be; absent: any of the pool.

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


class JobEvent(StrEnum):
    """Names of the events on /v1/jobs/{id}/events; the stream ends after one of the last four."""

    QUEUED = "queued"
    RUNNING = "running"
    PROGRESS = "progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def _token(value: str) -> str:
    """No pattern: a fault of a pattern shows the value."""
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("must be visible ASCII characters: it travels in a header")
    return value


def _reachable(url: str) -> str:
    """What the socket calls would refuse only when the worker is asked, and then each time."""
    path = url.removeprefix("unix:").encode()
    if url.startswith("unix:") and (b"\0" in path or len(path) > SOCKET_PATH_MAX):
        raise ValueError(f"a unix socket's path has at most {SOCKET_PATH_MAX} bytes, and no NUL among them")
    if url.startswith("http:") and not 1 <= int(url.rpartition(":")[2]) <= MAX_PORT:
        raise ValueError(f"a port is a number from 1 to {MAX_PORT}")
    return url


class WorkerRegistration(Frozen):
    """A worker the router may use.

    `url` is `http://127.0.0.1:PORT` or `unix:/path/of/a/socket` (the near end of an SSH forward).
    `token` is what the worker asks of its callers; the router keeps it and never shows it.
    """

    url: Annotated[
        str,
        StringConstraints(pattern=r"^(http://(127\.0\.0\.1|\[::1\]|localhost):[0-9]{1,5}|unix:/.+)$"),
        AfterValidator(_reachable),
    ]
    token: Annotated[str, StringConstraints(min_length=16, max_length=256), AfterValidator(_token)]
    pool: PoolName


class WorkerHealth(StrEnum):
    """What the router believes of a worker. Only `ready` ones are given work."""

    UNKNOWN = "unknown"  # registered, not yet asked
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"
    UNREACHABLE = "unreachable"
    QUARANTINED = "quarantined"  # it answers, and its images or its failures say not to use it


class WorkerView(Frozen):
    name: WorkerName
    url: str
    pool: PoolName
    token_fingerprint: str = Field(description="First 12 hex digits of the token's SHA-256.")
    health: WorkerHealth
    reason: str = ""
    since: datetime = Field(description="When `health` last changed, UTC.")
    draining: bool = Field(description="Told to drain by the operator.")
    running: int = Field(ge=0, description="Jobs it holds a lease on now.")
    finished: int = Field(ge=0, description="Jobs it has finished.")
    model: str | None = None
    tier: str | None = None
    max_pixels: int | None = Field(default=None, description="Of the largest image that it can make.")
    version: str | None = None


MachineId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
HostKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*$")]
"""A host's public key as in known_hosts: its type and itself, without a name before or a comment behind."""


class TunnelMachine(Frozen):
    """A machine whose workers are reached through SSH. `workers` gives each one's port on the machine's loopback."""

    id: MachineId
    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,254}$")]
    port: int = Field(default=22, ge=1, le=MAX_PORT)
    user: Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
    host_key: HostKey
    workers: dict[WorkerName, Annotated[int, Field(ge=1, le=MAX_PORT)]]


class TunnelMachines(Frozen):
    """The file that the tunnel service keeps to: what is in it is connected, what is not is not."""

    machines: list[TunnelMachine]


class TunnelState(StrEnum):
    """connecting -> up -> waiting -> connecting; `refused` waits longer, for somebody to look."""

    CONNECTING = "connecting"
    UP = "up"
    WAITING = "waiting"
    REFUSED = "refused"


class ForwardView(Frozen):
    """One worker's way: the socket here, and what is wrong with it if something is."""

    worker: WorkerName
    socket: str
    port: int
    up: bool
    reason: str = ""


class TunnelView(Frozen):
    """One machine's connection, and its workers' ways through it. Times are UTC."""

    machine: MachineId
    state: TunnelState
    reason: str = ""
    since: datetime
    failures: int = Field(ge=0, description="Connections in a row that failed.")
    forwards: list[ForwardView]


class TunnelsView(Frozen):
    """What the tunnel service of this host wrote last; nothing if it never has."""

    written_at: datetime | None = None
    trouble: str = Field(default="", description="Why the machines' file could not be followed; empty if it could.")
    tunnels: list[TunnelView] = Field(default_factory=list)


def tunnel_socket(run: PurePath, worker: str) -> PurePath:
    """The near end of the way to a worker, in the tunnel service's run directory. Named by a digest where the name is
    long: a socket's path ends at 107 bytes."""
    name = worker if len(worker) <= 24 else f"{worker[:11]}-{hashlib.sha256(worker.encode()).hexdigest()[:12]}"
    return run / "w" / name


def forward_only(public_key: str, ports: Iterable[int]) -> str:
    """The line of authorized_keys for the tunnel service's key: it may forward to these loopback ports, and nothing
    else (sshd(8), AUTHORIZED_KEYS FILE FORMAT)."""
    opens = ",".join(f'permitopen="127.0.0.1:{port}"' for port in sorted(set(ports)))
    return f"restrict,port-forwarding,{opens} {public_key.strip()}"


class PoolView(Frozen):
    name: PoolName
    workers: int = Field(ge=0)
    ready: int = Field(ge=0)
    queued: int = Field(ge=0)
    running: int = Field(ge=0)
    succeeded: int = Field(ge=0)
    failed: int = Field(ge=0)
    cancelled: int = Field(ge=0)
    expired: int = Field(default=0, ge=0)


class PoolExpected(Frozen):
    """The pool's machines boot, and will be there within `seconds`; 0: they will not."""

    seconds: int = Field(ge=0, le=7200)


KeyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class KeyLimitsView(Frozen):
    """What is absent is not limited.

    `running` jobs may run at once, more wait; `waiting` more may wait in each pool, further ones are refused.
    """

    per_minute: int | None = Field(default=None, ge=1, le=1_000_000, description="Requests that create jobs.")
    running: int | None = Field(default=None, ge=1, le=100_000)
    waiting: int | None = Field(default=None, ge=0, le=10_000_000)
    pools: list[PoolName] | None = Field(default=None, description="The only ones that it may use.")


class KeyRequest(Frozen):
    name: KeyName
    limits: KeyLimitsView = KeyLimitsView()


class KeyView(Frozen):
    """An API key as its operator sees it. Times are UTC."""

    id: str
    name: str
    fingerprint: str = Field(description="First 12 hex digits of the key's SHA-256.")
    created_at: datetime
    revoked_at: datetime | None = None
    limits: KeyLimitsView


class NewKey(KeyView):
    key: str = Field(description="The key itself. It is shown this once, and kept nowhere.")


class UsageView(Frozen):
    """What a key's images of one day (UTC) have cost."""

    day: date
    images: int = Field(ge=0)
    pixels: int = Field(ge=0)
    gpu_seconds: float = Field(ge=0)


class Health(Frozen):
    """`ok` when the store answers; `pools` names those that could make an image now."""

    status: str
    version: str
    ready_pools: list[PoolName]


class Readiness(Frozen):
    """Whether to send traffic to this router, and what of. `store` and `artifacts` are `ok`, or say what is wrong;
    `pools` counts the workers that are ready."""

    ready: bool
    version: str
    store: str
    artifacts: str
    draining: bool
    pools: dict[PoolName, int]


def fingerprint(secret: str) -> str:
    """A name for a secret that may be shown: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]
