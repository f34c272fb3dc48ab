"""OpenAI's words for an image: its request, what that asks of us, and its answer. Who waits for it is `openai`'s part.

What OpenAI's fields mean here:
    model             our name, a worker's own, or one of OpenAI's that clients have written down (`router.api.models`)
    n                 n jobs, with seeds seed, seed+1, …; one fails, all are cancelled
    size              WIDTHxHEIGHT in pixels; auto is 1024x1024
    quality           a sampler preset: low V4_TURBO_12, medium V4_DEFAULT_20, high and above V4_QUALITY_48
    response_format   b64_json unless asked for url, as OpenAI's newest models answer
    output_format     png, jpeg, webp; output_compression is the lossy ones' quality, 100 the best
    stream            the finished images as events; partial images are never made, which OpenAI's contract allows
    user, safety_identifier   echoed and not used; background, moderation: only values that are true here anyway
More than OpenAI has (the clients' `extra_body`): seed, num_inference_steps, preset, pool.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from math import ceil
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from router.api.explain import Fault
from router.api.refusals import RefusedError, of_faults
from router.contract import INTERACTIVE, PoolName
from router.jobs import Job
from worker.contract import MAX_SEED, SIDE_STEP, Frozen, ImageFormat, Preset, Prompt, Seed, Steps

MODEL = "ideogram-4"
MAX_IMAGES = 10
AUTO = "auto"
DEFAULT_SIZE = "1024x1024"
BYTES_A_TOKEN = 4
"""Of English, about. The router has no tokenizer: the text encoder's is a worker's, and refuses what is too long."""
CHUNK = 3 * 2**18
"""Bytes of an image that become base64 at once; a multiple of three, so that the pieces join."""


class Quality(StrEnum):
    """OpenAI's words for it, old and new."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"
    STANDARD = "standard"
    HD = "hd"
    AUTO = "auto"


_PRESETS: Mapping[Quality, Preset] = {
    Quality.LOW: Preset.TURBO_12,
    Quality.MEDIUM: Preset.DEFAULT_20,
    Quality.STANDARD: Preset.DEFAULT_20,
    Quality.HIGH: Preset.QUALITY_48,
    Quality.XHIGH: Preset.QUALITY_48,
    Quality.MAX: Preset.QUALITY_48,
    Quality.HD: Preset.QUALITY_48,
}
_QUALITIES: Mapping[Preset, Quality] = {
    Preset.TURBO_12: Quality.LOW,
    Preset.DEFAULT_20: Quality.MEDIUM,
    Preset.QUALITY_48: Quality.HIGH,
}
NAMES = {
    "width": "size",
    "height": "size",
    "steps": "num_inference_steps",
    "format": "output_format",
    "quality": "output_compression",
}
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
    output_format: ImageFormat | None = ImageFormat.PNG
    output_compression: Annotated[int, Field(strict=True, ge=0, le=100)] | None = Field(
        default=None, description="Of JPEG and WebP: 100 is the best and the largest. A PNG is never lossy."
    )
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(default=None, description="There is no filter to set.")
    style: None = Field(default=None, description="Say it in the prompt.")
    stream: Annotated[bool, Field(strict=True)] | None = False
    partial_images: Annotated[int, Field(strict=True, ge=0, le=3)] | None = Field(
        default=None, description="With `stream` only. None are made: the finished image is the first that comes."
    )
    safety_identifier: str | None = Field(default=None, description="Echoed, and not used.")
    user: str | None = Field(default=None, description="Echoed as `safety_identifier`, and not used.")
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    preset: Preset | None = None
    pool: PoolName = INTERACTIVE

    @model_validator(mode="after")
    def _consistent(self) -> ImagesRequest:
        if self.output_compression not in (None, 100) and self.output_format in (None, ImageFormat.PNG):
            raise ValueError("output_compression: a PNG is never lossy; ask for output_format jpeg or webp")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: they go with stream only")
        if self.stream and self.response_format is ResponseFormat.URL:
            raise ValueError("response_format: a streamed image comes as b64_json")
        return self

    @property
    def by_url(self) -> bool:
        return self.response_format is ResponseFormat.URL

    @property
    def identifier(self) -> str | None:
        return self.safety_identifier or self.user or None

    def sampler(self) -> tuple[Steps | None, Preset | None]:
        """Steps or a preset, whichever was asked for in one way or another. Raises RefusedError."""
        asked = [
            name for name in ("quality", "num_inference_steps", "preset") if getattr(self, name) not in (None, AUTO)
        ]
        if len(asked) > 1:
            fault = Fault(tuple(asked), "each of them sets the sampler; give one")
            raise RefusedError(of_faults((fault,)))
        if self.num_inference_steps is not None:
            return self.num_inference_steps, None
        return None, self.preset or _PRESETS.get(self.quality or Quality.AUTO, Preset.DEFAULT_20)

    def wanted(self, seed: int) -> list[dict[str, object]]:
        """A GenerationRequest's fields for each of the images; `seed` where none was asked for."""
        steps, preset = self.sampler()
        width, height = map(int, (DEFAULT_SIZE if self.size in (None, AUTO) else str(self.size)).split("x"))
        form = self.output_format or ImageFormat.PNG
        lossy = form is not ImageFormat.PNG and self.output_compression is not None
        one: dict[str, object] = {
            "prompt": self.prompt,
            "width": width,
            "height": height,
            "steps": steps,
            "preset": preset,
            "format": form,
            "quality": max(1, self.output_compression or 0) if lossy else None,
        }
        first = seed if self.seed is None else self.seed
        return [{**one, "seed": (first + i) % (MAX_SEED + 1)} for i in range(self.n or 1)]


class ImageData(Frozen):
    """One image, in the one of the two ways that was asked for."""

    b64_json: str | None = None
    url: str | None = Field(default=None, description="Good for a while, without a key.")
    seed: Seed = Field(description="Makes the same image again.")
    is_image_safe: bool = Field(
        default=True, description="False: it looks like the grey picture that the weights draw for what they refuse."
    )


class TokenDetails(Frozen):
    text_tokens: int
    image_tokens: int


class Usage(Frozen):
    """In OpenAI's unit. What the images took is exact: a token of the transformers is 16x16 pixels. What the prompt
    took is estimated, at four bytes a token."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails
    output_tokens_details: TokenDetails

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Usage:
        text = sum(ceil(len(job.request.text.encode(errors="replace")) / BYTES_A_TOKEN) for job in jobs)
        drawn = sum(job.request.width * job.request.height // SIDE_STEP**2 for job in jobs)
        return cls(
            input_tokens=text,
            output_tokens=drawn,
            total_tokens=text + drawn,
            input_tokens_details=TokenDetails(text_tokens=text, image_tokens=0),
            output_tokens_details=TokenDetails(text_tokens=0, image_tokens=drawn),
        )


class ImagesHead(Frozen):
    """All of an ImagesResponse but its images."""

    created: int = Field(description="Seconds since the epoch.")
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat = ImageFormat.PNG
    quality: Quality | None = Field(default=None, description="Absent when steps were asked for.")
    size: str
    safety_identifier: str | None = None
    usage: Usage


class ImagesResponse(ImagesHead):
    data: list[ImageData]


def head_of(jobs: Sequence[Job], created: int, identifier: str | None = None) -> ImagesHead:
    """Of the jobs that one request made: they differ in their seeds."""
    asked = jobs[0].request
    return ImagesHead(
        created=created,
        output_format=asked.format,
        quality=_QUALITIES[asked.preset] if asked.preset else None,
        size=f"{asked.width}x{asked.height}",
        safety_identifier=identifier,
        usage=Usage.of(jobs),
    )


async def data_by_url(job: Job, url: str) -> AsyncIterator[bytes]:
    """The job's ImageData as JSON."""
    yield _said(ImageData(url=url, seed=job.request.seed, is_image_safe=_safe(job)))


async def data_inline(job: Job, image: bytes) -> AsyncIterator[bytes]:
    """The job's ImageData as JSON, in pieces.

    Encoded some hundred kB at a time, in threads: a model, or one string, of ten images of 6 MB takes from 0.2 to
    0.5 s, and the interpreter's lock is held all the while, so that no other request is answered.
    """
    head, tail = _said(ImageData(b64_json="", seed=job.request.seed, is_image_safe=_safe(job))).split(b'""', 1)
    yield head + b'"'
    async for piece in base64_pieces(image):
        yield piece
    yield b'"' + tail


async def base64_pieces(image: bytes) -> AsyncIterator[bytes]:
    view = memoryview(image)
    for begin in range(0, len(image), CHUNK):
        yield await asyncio.to_thread(base64.b64encode, view[begin : begin + CHUNK])


def _safe(job: Job) -> bool:
    return not (job.image and job.image.suspicion)


def _said(data: ImageData) -> bytes:
    return data.model_dump_json(exclude_none=True).encode()


async def spliced(head: ImagesHead, images: Sequence[AsyncIterator[bytes]]) -> AsyncIterator[bytes]:
    """An ImagesResponse as JSON in pieces, of images that are JSON already."""
    yield head.model_dump_json(exclude_none=True).encode().removesuffix(b"}") + b',"data":['
    for i, image in enumerate(images):
        if i:
            yield b","
        async for piece in image:
            yield piece
    yield b"]}"
