"""Ideogram's dialect: generate with v4, at once or by webhook, and what v3's generate shares with it.

A client of the hosted API changes its base URL and its key (`Api-Key`). What a request's fields mean is
`router.api.ideogram_requests`'. What the open weights cannot do, or what is not built yet, answers 501 with the reason.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import structlog
from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError

from router.api.auth import IdeogramCaller
from router.api.context import Context, InContext
from router.api.errors import ADMISSION, FORM, NAMED, WAITING, Dialect, documented
from router.api.explain import Fault
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.ideogram_requests import NAMES_V3, NAMES_V4, GenerateV3, GenerateV4, body_of, read
from router.api.jobs import new_job
from router.api.rate import remember_rate
from router.api.refusals import Kind, RefusedError, of_faults, of_values, refused
from router.api.views import moment
from router.api.waiting import make
from router.contract import INTERACTIVE, JobRequest, JobState
from router.jobs import Job
from router.webhooks.addresses import allowed
from worker.contract import MAX_SEED, Frozen, Seed

MARK = "#ideogram"
"""Ends the URL of a webhook that is told in this dialect. A fragment is never sent, and no caller may give one."""
LOCAL_NAMES = (".localhost", ".local", ".internal")

_LATER = "it is not built yet"
_NO_IMAGES = "the open weights draw from text alone"
REASONS = {
    "magic-prompt": f"{_LATER}; give a json_prompt, or a text_prompt that says all that matters",
    "describe": f"{_LATER}; the resident text encoder is used for prompts alone",
    "remix": _NO_IMAGES,
    "edit": _NO_IMAGES,
    "reframe": _NO_IMAGES,
    "replace-background": _NO_IMAGES,
    "remove-background": _NO_IMAGES,
    "layerize-text": _NO_IMAGES,
    "upscale": "the open weights draw at most 2048 pixels a side",
    "generate-transparent": "the open weights have no documented alpha",
}
"""Why an operation is not served."""
LEGACY = ("describe", "remix", "edit", "reframe", "upscale")
"""Those that the hosted API has had without a version, too."""
ABSENT = {
    f"/{place}{operation}": why
    for operation, why in REASONS.items()
    for place in ("v1/ideogram-v4/", "v1/ideogram-v3/", *([""] if operation in LEGACY else []))
}

router = APIRouter(tags=["ideogram"])
BEGINS = documented(Dialect.IDEOGRAM, *FORM, *ADMISSION)
MAKES = documented(Dialect.IDEOGRAM, *FORM, *ADMISSION, *WAITING)
READS = documented(Dialect.IDEOGRAM, *NAMED)
NEVER = documented(Dialect.IDEOGRAM, Kind.NOT_SERVED)
"""What the routes may refuse."""
LINKS = {
    "read": {
        "description": "How it is doing.",
        "operationRef": "#/paths/~1v1~1generations~1{generation_id}/get",
        "parameters": {"generation_id": "$response.body#/generation_id"},
    }
}


class Drawn(Frozen):
    """One image. `url` is good for a while, without a key; it is null where the image looks refused."""

    url: str | None
    prompt: str = Field(description="The text, or the structured caption as it was drawn.")
    resolution: str
    is_image_safe: bool
    seed: Seed


class DrawnV3(Drawn):
    style_type: Literal["GENERAL"] = "GENERAL"


class Generated(Frozen):
    created: datetime
    data: Sequence[Drawn | DrawnV3]
    response_type: Literal["url"] = "url"


class Begun(Frozen):
    generation_id: str


class Status(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


class Generation(Frozen):
    """`response_type` and `data` are there once it is completed, and nothing of them before."""

    generation_id: str
    status: Status
    created: datetime
    response_type: Literal["url"] | None = None
    data: list[Drawn] | None = None


@router.post(
    "/v1/ideogram-v4/generate",
    summary="Make an image and wait for it",
    openapi_extra=body_of(GenerateV4),
    responses=MAKES,
)
async def generate_v4(
    request: Request, context: InContext, key: IdeogramCaller, idempotency_key: IdempotencyKey = None
) -> Generated:
    """Waits as long as it takes; closing the connection cancels the image."""
    body = await read(request, GenerateV4)
    wanted = [{**body.wanted(), "seed": context.draw_seed()}]
    repeated = repeatable(idempotency_key, request, body, waits=True)
    (job,) = await make(context, request, key, INTERACTIVE, wanted, NAMES_V4, repeated=repeated)
    return Generated(created=moment(job.created_at), data=[_drawn(context, job)])


@router.post(
    "/v1/ideogram-v3/generate",
    summary="Make images and wait for them",
    openapi_extra=body_of(GenerateV3),
    responses=MAKES,
)
async def generate_v3(
    request: Request, context: InContext, key: IdeogramCaller, idempotency_key: IdempotencyKey = None
) -> Generated:
    """By Ideogram 4, as everything here. Seeds of several images follow one another."""
    body = await read(request, GenerateV3)
    first = context.draw_seed() if body.seed is None else body.seed
    wanted = [{**body.wanted(), "seed": (first + i) % (MAX_SEED + 1)} for i in range(body.num_images)]
    repeated = repeatable(idempotency_key, request, body, waits=True)
    jobs = await make(context, request, key, INTERACTIVE, wanted, NAMES_V3, repeated=repeated)
    images = [DrawnV3(**_drawn(context, job).model_dump()) for job in jobs]
    return Generated(created=moment(jobs[0].created_at), data=images)


@router.post(
    "/v1/ideogram-v4/async/generate",
    summary="Ask for an image",
    openapi_extra=body_of(GenerateV4),
    responses={200: {"links": LINKS}, **BEGINS},
)
async def begin(
    request: Request,
    context: InContext,
    key: IdeogramCaller,
    webhook_url: Annotated[str, Query(description="Told by POST, signed as Standard Webhooks are.", max_length=2048)],
    idempotency_key: IdempotencyKey = None,
) -> Begun:
    """The job is committed before this answers. `webhook_url` is sent a `Generation`; so is whoever asks for it."""
    body = await read(request, GenerateV4)
    try:
        asked = JobRequest.model_validate({**body.wanted(), "webhook": webhook_url})
    except ValidationError as error:
        raise of_values(error, {**NAMES_V4, "webhook": "webhook_url"}) from error
    _check_receiver(context, asked.webhook or "")
    new = new_job(context, asked)
    new = replace(new, webhook=f"{new.webhook}{MARK}")
    repeated = repeatable(idempotency_key, request, f"{webhook_url}\n{body.model_dump_json()}".encode(), waits=False)
    admitted = await context.core.service.submit_all(key, INTERACTIVE, [new], repeated)
    remember_rate(request, admitted.rate)
    (job_id,) = admitted.job_ids
    structlog.contextvars.bind_contextvars(job=job_id)
    return Begun(generation_id=job_id)


@router.get(
    "/v1/generations/{generation_id}",
    summary="How a generation is doing",
    response_model_exclude_unset=True,
    responses=READS,
)
async def generation(generation_id: str, context: InContext, key: IdeogramCaller) -> Generation:
    job = await context.core.service.get(key, generation_id)
    if job is None:
        raise refused(Kind.NOT_FOUND, f"there is no generation {generation_id[:64]} of this API key")
    structlog.contextvars.bind_contextvars(job=job.id)
    return told(context, job)


async def _absent(request: Request, _: IdeogramCaller) -> None:
    path = request.url.path
    raise refused(Kind.NOT_SERVED, f"{path} is not served here: {ABSENT[path]}")


for _path, _why in ABSENT.items():
    said: dict[str, Any] = {"summary": "Not served", "description": _why, "responses": NEVER}
    router.add_api_route(_path, _absent, methods=["POST"], status_code=501, response_model=None, **said)


def told(context: Context, job: Job) -> Generation:
    """A job as this dialect has it, with a URL that is signed now."""
    created = moment(job.created_at)
    if job.state is not JobState.SUCCEEDED:
        status = Status.FAILED if job.state.ended else Status.PENDING
        return Generation(generation_id=job.id, status=status, created=created)
    return Generation(
        generation_id=job.id,
        status=Status.COMPLETED,
        created=created,
        response_type="url",
        data=[_drawn(context, job)],
    )


def _drawn(context: Context, job: Job) -> Drawn:
    request = job.request
    safe = not (job.image and job.image.suspicion)
    return Drawn(
        url=context.links.url(job.id, context.clock()) if safe else None,
        prompt=request.text,
        resolution=f"{request.width}x{request.height}",
        is_image_safe=safe,
        seed=request.seed,
    )


def _check_receiver(context: Context, url: str) -> None:
    """What can be seen of a URL's address without asking for its name; the rest is judged when it is connected to."""
    if url.startswith("http:") and not context.plain_webhooks:
        raise RefusedError(of_faults((Fault(("webhook_url",), "must be https: it goes over the public internet"),)))
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    try:
        private = not allowed(ipaddress.ip_address(host), context.webhook_exceptions)
    except ValueError:  # a name
        private = f".{host}".endswith(LOCAL_NAMES)
    if private:
        fault = Fault(("webhook_url",), f"{host} is not a public address; webhooks go nowhere else")
        raise RefusedError(of_faults((fault,)))
