"""OpenAI's answer with images, put together from pieces. Its request is `router.contract.dialects.images`', and who
waits for it is `openai`'s part.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from math import ceil
from typing import Literal

import pybase64
from pydantic import Field

from router.contract.dialects.images import Quality
from router.jobs import Job
from worker.contract import SIDE_STEP, Frozen, ImageFormat, Seed

BYTES_A_TOKEN = 4
"""Of English, about. The router has no tokenizer: the text encoder's is a worker's, and refuses what is too long."""
CHUNK = 3 * 2**18
"""Bytes of an image that become base64 at once (30 us); a multiple of three, so that the pieces join."""


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
        quality=Quality.of(asked.preset) if asked.preset else None,
        size=f"{asked.width}x{asked.height}",
        safety_identifier=identifier,
        usage=Usage.of(jobs),
    )


async def data_by_url(job: Job, url: str) -> AsyncIterator[bytes]:
    """The job's ImageData as JSON."""
    yield _said(ImageData(url=url, seed=job.request.seed, is_image_safe=_safe(job)))


async def data_inline(job: Job, image: bytes) -> AsyncIterator[bytes]:
    """The job's ImageData as JSON, in pieces.

    Encoded some hundred kB at a time: a model, or one string, of ten images of 6 MB takes from 0.2 to 0.5 s, and the
    interpreter's lock is held all the while, so that no other request is answered.
    """
    head, tail = _said(ImageData(b64_json="", seed=job.request.seed, is_image_safe=_safe(job))).split(b'""', 1)
    yield head + b'"'
    async for piece in base64_pieces(image):
        yield piece
    yield b'"' + tail


async def base64_pieces(image: bytes) -> AsyncIterator[bytes]:
    view = memoryview(image)
    for begin in range(0, len(image), CHUNK):
        yield pybase64.b64encode(view[begin : begin + CHUNK])


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
