"""OpenAI's streamed images: server-sent events, one `image_generation.completed` for each finished image.

There are no partial images. Progress goes as comments, which every client of server-sent events passes over, and
which keep the proxies on the way from calling the connection dead. An error after the beginning is an event with
OpenAI's error object, which its own client raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Literal

import structlog
from pydantic import Field

from router.admission import POOL_RETRY_S
from router.api.context import Context
from router.api.errors import openai_error
from router.api.images import ImagesHead, Usage, base64_pieces, head_of
from router.api.refusals import Kind, Refusal, of_job, refusal_of, stopping
from router.api.waiting import Taken, not_booted_in
from router.contract import JobState, Progress
from router.contract.dialects.images import NAMES, Quality
from router.errors import RouterError
from router.jobs import Job
from worker.contract import Frozen, ImageFormat, Seed

_log = structlog.stdlib.get_logger(__name__)

HEARTBEAT_S = 10.0


class ImageCompleted(Frozen):
    """The data of an `image_generation.completed` event."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str
    created_at: int = Field(description="Seconds since the epoch.")
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    quality: Quality = Field(description="auto when steps were asked for.")
    size: str
    safety_identifier: str | None = None
    usage: Usage
    seed: Seed
    is_image_safe: bool = True


async def streamed(
    context: Context, taken: Taken, identifier: str | None, heartbeat_s: float = HEARTBEAT_S
) -> AsyncGenerator[bytes]:
    """To the last image, or the first that cannot be made. Whoever goes away earlier leaves no job behind."""
    following = _Following(context, taken)
    left = len(taken.job_ids)
    try:
        yield b": the images have been asked for\n\n"
        while left:
            happened = await following.next(heartbeat_s)
            match happened:
                case None:
                    yield b": still here\n\n"
                case Refusal():
                    yield _error(happened)
                    return
                case job, Progress(step=step, steps=steps):
                    yield f": {job.id} step {step} of {steps}\n\n".encode()
                case job, None:
                    left -= 1
                    try:
                        image = await context.core.service.image_bytes(job)
                    except RouterError as error:
                        _log.error("image_lost", job=job.id, error=str(error))
                        yield _error(refusal_of(error))
                        return
                    async for piece in _completed(context, job, image, identifier):
                        yield piece
    finally:
        following.stop()
        if left:
            taken.abandon()


def _error(refusal: Refusal) -> bytes:
    return b"event: error\ndata: " + openai_error(refusal).model_dump_json().encode() + b"\n\n"


async def _completed(context: Context, job: Job, image: bytes, identifier: str | None) -> AsyncGenerator[bytes]:
    head: ImagesHead = head_of([job], int(context.clock()), identifier)
    event = ImageCompleted(
        b64_json="",
        created_at=head.created,
        output_format=head.output_format,
        quality=head.quality or Quality.AUTO,
        size=head.size,
        safety_identifier=identifier,
        usage=head.usage,
        seed=job.request.seed,
        is_image_safe=not (job.image and job.image.suspicion),
    )
    before, after = event.model_dump_json(exclude_none=True).encode().split(b'"b64_json":""', 1)
    yield b"event: image_generation.completed\ndata: " + before + b'"b64_json":"'
    async for piece in base64_pieces(image):
        yield piece
    yield b'"' + after + b"\n\n"


Happened = tuple[Job, Progress | None] | Refusal
"""A step of a job, a job's image, or why there will be none."""


class _Following:
    """All the jobs of one request at once."""

    def __init__(self, context: Context, taken: Taken) -> None:
        self._context, self._taken = context, taken
        self._news: asyncio.Queue[Happened] = asyncio.Queue()
        self._tasks: Sequence[asyncio.Task[None]] = [
            *(asyncio.create_task(self._heard(self._follow(job_id))) for job_id in taken.job_ids),
            asyncio.create_task(self._heard(self._stopping())),
            asyncio.create_task(self._heard(self._nobody())),
        ]

    async def next(self, within_s: float) -> Happened | None:
        try:
            async with asyncio.timeout(within_s):
                return await self._news.get()
        except TimeoutError:
            return None

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _heard(self, following: Coroutine[object, object, None]) -> None:
        """A task that died unseen would leave the client to its heartbeats for ever."""
        try:
            await following
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told, and the log why
            _log.error("image_stream_failed", pool=self._taken.pool, exc_info=error)
            self._news.put_nowait(refusal_of(error))

    async def _follow(self, job_id: str) -> None:
        (job,) = await self._context.core.service.all_of([job_id])
        async with aclosing(self._context.core.service.watch(job)) as watched:
            async for _, now, progress in watched:
                if now.state is JobState.SUCCEEDED:
                    self._news.put_nowait((now, None))
                elif now.state.ended:
                    self._news.put_nowait(of_job(now, NAMES))
                elif progress is not None:
                    self._news.put_nowait((now, progress))

    async def _stopping(self) -> None:
        await self._context.closing.wait()
        self._news.put_nowait(stopping().refusal)

    async def _nobody(self) -> None:
        await self._context.core.service.not_booted(self._taken.pool, self._taken.wanted)
        detail = not_booted_in(self._taken.pool)
        self._news.put_nowait(Refusal(Kind.POOL_UNAVAILABLE, detail, retry_after_s=POOL_RETRY_S))
