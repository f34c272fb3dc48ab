"""OpenAI's dialect: `POST /v1/images/generations` and `GET /v1/models`, good enough for their own clients.

What OpenAI's fields mean here:
    model            "ideogram-4" for any, or what a registered worker says that it serves: then one of those makes it
    n                n jobs, with seeds seed, seed+1, …; one fails, all are cancelled
    size             WIDTHxHEIGHT in pixels; auto is 1024x1024
    quality          a sampler preset: low V4_TURBO_12, medium V4_DEFAULT_20, high V4_QUALITY_48
    response_format  b64_json unless asked for url, as OpenAI's newest models answer
    user             taken and not used; background, moderation: only values that are true here anyway
More than OpenAI has (the clients' `extra_body`): seed, num_inference_steps, preset, pool.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, Field, field_validator

from router.api.auth import Caller
from router.api.context import Context, InContext
from router.api.errors import OpenAIError
from router.api.explain import Fault
from router.api.idempotency import IdempotencyKey, repeatable
from router.api.refusals import Kind, RefusedError, of_faults, refused
from router.api.requests import json_only
from router.api.waiting import image_base64, make
from router.choice import Terms
from router.contract import INTERACTIVE, PoolName
from router.jobs import Job
from worker.contract import MAX_SEED, Frozen, Preset, Prompt, Seed, Steps

MODEL = "ideogram-4"
PUBLISHED = 1_780_444_800
"""2026-06-03, the day of the weights' licence; OpenAI's model objects must carry a time."""
MAX_IMAGES = 10
AUTO = "auto"

router = APIRouter(
    tags=["openai"],
    responses={"default": {"model": OpenAIError, "description": "What is wrong, and what it should be."}},
)


class Quality(StrEnum):
    """OpenAI's words for it, old and new."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    STANDARD = "standard"
    HD = "hd"
    AUTO = "auto"


_PRESETS: Mapping[Quality, Preset] = {
    Quality.LOW: Preset.TURBO_12,
    Quality.MEDIUM: Preset.DEFAULT_20,
    Quality.STANDARD: Preset.DEFAULT_20,
    Quality.HIGH: Preset.QUALITY_48,
    Quality.HD: Preset.QUALITY_48,
}
_QUALITIES: Mapping[Preset, Quality] = {
    Preset.TURBO_12: Quality.LOW,
    Preset.DEFAULT_20: Quality.MEDIUM,
    Preset.QUALITY_48: Quality.HIGH,
}
_NAMES = {"width": "size", "height": "size", "steps": "num_inference_steps"}
"""Our fields by this dialect's names."""


class ResponseFormat(StrEnum):
    B64_JSON = "b64_json"
    URL = "url"


def _size(size: str) -> str:
    if size != AUTO and not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", size):
        raise ValueError(f"'{size[:20]}' is neither WIDTHxHEIGHT in pixels, as in 1024x1024, nor auto")
    return size


class ImagesRequest(Frozen):
    """Unknown fields are errors; those of OpenAI's that cannot be honoured are refused by name."""

    prompt: Prompt = Field(examples=["a letterpress print shop at night"])
    model: str | None = Field(default=None, examples=[MODEL])
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_IMAGES)] | None = 1
    size: Annotated[str, AfterValidator(_size)] | None = Field(default=AUTO, examples=["1024x1024"])
    quality: Quality | None = Quality.AUTO
    response_format: ResponseFormat | None = ResponseFormat.B64_JSON
    output_format: Literal["png"] | None = "png"
    output_compression: Annotated[int, Field(ge=100, le=100, description="A PNG is never lossy.")] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(default=None, description="There is no filter to set.")
    style: None = Field(default=None, description="Say it in the prompt.")
    stream: bool | None = False
    partial_images: Literal[0] | None = None
    user: str | None = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    preset: Preset | None = None
    pool: PoolName = INTERACTIVE

    @field_validator("stream")
    @classmethod
    def _whole_answers_only(cls, stream: bool | None) -> bool | None:
        if stream:
            raise ValueError("streamed images are not served yet; leave it out, or follow a job's events at /v1/jobs")
        return stream

    def sampler(self) -> tuple[Steps | None, Preset | None]:
        """Steps or a preset, whichever was asked for in one way or another."""
        asked = [
            name for name in ("quality", "num_inference_steps", "preset") if getattr(self, name) not in (None, AUTO)
        ]
        if len(asked) > 1:
            fault = Fault(tuple(asked), "each of them sets the sampler; give one")
            raise RefusedError(of_faults((fault,)))
        if self.num_inference_steps is not None:
            return self.num_inference_steps, None
        return None, self.preset or _PRESETS.get(self.quality or Quality.AUTO, Preset.DEFAULT_20)


class ImageData(Frozen):
    """One image, in the one of the two ways that was asked for."""

    b64_json: str | None = None
    url: str | None = Field(default=None, description="Good for a while, without a key.")
    seed: Seed = Field(description="Makes the same image again.")
    is_image_safe: bool = Field(
        default=True, description="False: it looks like the grey picture that the weights draw for what they refuse."
    )


class ImagesHead(Frozen):
    """All of an ImagesResponse but its images."""

    created: int = Field(description="Seconds since the epoch.")
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"
    quality: Quality | None = Field(default=None, description="Absent when steps were asked for.")
    size: str


class ImagesResponse(ImagesHead):
    data: list[ImageData]


class Model(Frozen):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since the epoch.")
    owned_by: str = "ideogram-ai"


class ModelList(Frozen):
    object: Literal["list"] = "list"
    data: list[Model]


@router.post(
    "/v1/images/generations",
    summary="Make images and wait for them",
    dependencies=[Depends(json_only)],
    response_model=ImagesResponse,
)
async def generations(
    body: ImagesRequest,
    request: Request,
    context: InContext,
    key: Caller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Waits as long as it takes; closing the connection cancels the images."""
    if body.model is not None:
        _model(context, body.model)
    steps, preset = body.sampler()
    size = "1024x1024" if body.size in (None, AUTO) else str(body.size)
    width, height = map(int, size.split("x"))
    first = context.draw_seed() if body.seed is None else body.seed
    one = {"prompt": body.prompt, "width": width, "height": height, "steps": steps, "preset": preset}
    wanted = [{**one, "seed": (first + i) % (MAX_SEED + 1)} for i in range(body.n or 1)]
    terms = Terms(model=None if body.model in (None, MODEL) else body.model)
    repeated = repeatable(idempotency_key, request, body, waits=True)
    jobs = await make(context, request, key, body.pool, wanted, _NAMES, terms=terms, repeated=repeated)
    by_url = body.response_format is ResponseFormat.URL
    head = ImagesHead(created=int(context.clock()), quality=_QUALITIES[preset] if preset else None, size=size)
    # One after another: ten threads that want the interpreter's lock keep the event loop from it.
    images = [await _data(context, job, by_url=by_url) for job in jobs]
    pieces = spliced(head, images)
    length = {"Content-Length": str(sum(map(len, pieces)))}
    return StreamingResponse(_each(pieces), media_type="application/json", headers=length)


def spliced(head: ImagesHead, images: Sequence[bytes]) -> list[bytes]:
    """An ImagesResponse as JSON in pieces, of images that are JSON already.

    Ten images of 6 MB as one model, or as one string of bytes, take from 0.2 to 0.5 s, in any thread: the
    interpreter's lock is held all the while, and no other request is answered.
    """
    pieces = [head.model_dump_json(exclude_none=True).encode().removesuffix(b"}"), b',"data":[']
    for i, image in enumerate(images):
        pieces += [b",", image] if i else [image]
    return [*pieces, b"]}"]


async def _each(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _data(context: Context, job: Job, *, by_url: bool) -> bytes:
    """The job's ImageData as JSON."""
    safe = not (job.image and job.image.suspicion)
    if by_url:
        url = context.links.url(job.id, context.clock())
        data = ImageData(url=url, seed=job.request.seed, is_image_safe=safe)
    else:
        data = ImageData(b64_json=await image_base64(context, job), seed=job.request.seed, is_image_safe=safe)
    return await asyncio.to_thread(lambda: data.model_dump_json(exclude_none=True).encode())


@router.get("/v1/models", summary="The models that are served")
async def models(context: InContext, _: Caller) -> ModelList:
    return ModelList(data=[_described(name) for name in _served(context)])


@router.get("/v1/models/{model:path}", summary="One model")
async def model(model: str, context: InContext, _: Caller) -> Model:
    return _model(context, model)


def _model(context: Context, name: str) -> Model:
    served = _served(context)
    if name not in served:
        raise refused(Kind.MODEL_NOT_FOUND, f"model '{name[:80]}' is not served here; there is: {', '.join(served)}")
    return _described(name)


def _served(context: Context) -> tuple[str, ...]:
    theirs = {view.model for view in context.core.fleet.views() if view.model}
    return (MODEL, *sorted(theirs - {MODEL}))


def _described(name: str) -> Model:
    return Model(id=name, created=PUBLISHED)
