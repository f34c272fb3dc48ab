"""A batch's lines in OpenAI's words: requests as they come in, answers as they go out (`router.batches.keeper`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from math import ceil
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError
from pydantic_core import to_json

from router.api.context import Context
from router.api.errors import Dialect, OpenAIErrorBody, openai_error, status_of
from router.api.explain import Fault, faults
from router.api.images import data_by_url, data_inline, head_of, spliced
from router.api.models import resolved
from router.api.refusals import Kind, Refusal, RefusedError, of_faults, of_job, of_values
from router.batches import Batch, DoneLine, LineRefusal, NewLine
from router.batches.desk import CANCELLED, EXPIRED, INPUT_LOST, BadLineError, Checked, line_expired
from router.choice import Terms
from router.contract import JobState
from router.contract.dialects.images import NAMES, BatchedImagesRequest
from router.contract.names import UNMAKEABLE
from router.jobs import Job, NewJob, Place
from worker.contract import Frozen, GenerationRequest, ImageFormat

ANSWER_BYTES = 2048
"""Of an answer, or an error, around its images and its custom id."""
IMAGE_BYTES = 512
"""Around one image in an answer; its URL, where that is what it is, included."""
BYTES_A_PIXEL = {ImageFormat.PNG: 3, ImageFormat.JPEG: 1, ImageFormat.WEBP: 1}
"""What is foreseen: a PNG of nothing but noise; of the lossy ones five times what a picture takes at their usual
quality. Noise takes up to five bytes, as JPEG of quality 100: what is larger finds room when it is written, or none."""
LINKS_S = 7 * 86_400
"""How long a URL in an output file is good: a batch is read some time after it was written."""


class BatchLine(Frozen):
    """One line of a batch's input."""

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    method: str = Field(pattern="^POST$")
    url: str
    body: dict[str, Any]


class LineResponse(Frozen):
    status_code: int
    request_id: str = Field(description="The line's first job, for GET /v1/jobs/{id}; empty if it became none.")
    body: Mapping[str, Any]


class LineError(Frozen):
    code: str
    message: str


class LineOutput(Frozen):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineError | None


class ImageLines:
    """Lines that ask for images."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def check(self, batch: Batch, line: bytes) -> Checked:
        try:
            asked = BatchLine.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "json_invalid":
                raise BadLineError("invalid_json_line", "the line is not JSON") from error
            (fault, *_) = faults([first])
            raise BadLineError(str(fault.code), str(fault), fault.fields[0] if fault.fields else None) from error
        if asked.url != batch.endpoint:
            raise BadLineError("mismatched_url", f"url is '{asked.url[:80]}', and the batch's {batch.endpoint}", "url")
        try:
            body = BatchedImagesRequest.model_validate(asked.body)
            images = body.wanted(0)
            GenerationRequest.model_validate(images[0])  # what cannot be drawn takes no room
            return Checked(asked.custom_id, _foreseen(asked.custom_id, images, len(line), by_url=body.by_url))
        except ValidationError:
            return Checked(asked.custom_id, _around(asked.custom_id))  # it will be one of the error file

    async def read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        try:
            asked = BatchLine.model_validate_json(line)
        except ValidationError:
            return NewLine(number, "", refusal=INPUT_LOST)  # it was one when it was checked: the file is damaged
        try:
            body = BatchedImagesRequest.model_validate(asked.body)
            wanted = await self._wanted(batch, number, body)
        except ValidationError as error:
            return NewLine(number, asked.custom_id, refusal=_refusal(_wrong(error)))
        except RefusedError as error:
            return NewLine(number, asked.custom_id, refusal=_refusal(error.refusal))
        foreseen = _foreseen(asked.custom_id, body.wanted(0), len(line), by_url=body.by_url)
        return NewLine(number, asked.custom_id, wanted, body.by_url, foreseen=foreseen)

    async def _wanted(self, batch: Batch, number: int, body: BatchedImagesRequest) -> list[NewJob]:
        if "pool" in body.model_fields_set and body.pool != batch.pool:
            raise RefusedError(of_faults((Fault(("pool",), f"is {body.pool}, and the batch's {batch.pool}"),)))
        terms = Terms(deadline=batch.at.expires, model=await resolved(self._context, batch.pool, body.model))
        place = Place(batch.id, number)
        try:
            requests = [GenerationRequest.model_validate(one) for one in body.wanted(self._context.draw_seed())]
        except ValidationError as error:
            raise of_values(error, NAMES) from error
        return [NewJob(request, terms, place=place) for request in requests]

    def size(self, line: DoneLine) -> int:
        images = [0 if line.by_url or job.image is None else _as_base64(job.image.bytes) for job in line.jobs]
        return _around(line.custom_id) + sum(IMAGE_BYTES + size for size in images)

    async def render(self, batch: Batch, line: DoneLine) -> AsyncIterator[bytes]:
        name = f"batch_req_{batch.id.partition('_')[2]}_{line.line}"
        refusal = line.refusal or why(line)
        request_id = line.jobs[0].id if line.jobs else ""
        if refusal is not None:
            yield _refused(name, line.custom_id, request_id, refusal).model_dump_json().encode() + b"\n"
            return
        images = [self._by_url(job) for job in line.jobs] if line.by_url else await self._readable(line.jobs)
        # The answer has megabytes, and goes between two halves of what is said around it.
        empty = LineResponse(status_code=200, request_id=request_id, body={})
        said = LineOutput(id=name, custom_id=line.custom_id, response=empty, error=None).model_dump_json().encode()
        before, after = said.rsplit(b'"body":{}', 1)
        yield before + b'"body":'
        head = head_of(line.jobs, (line.jobs[-1].finished_at or 0) // 1000)
        async for piece in spliced(head, images):
            yield piece
        yield after + b"\n"

    async def _readable(self, jobs: Sequence[Job]) -> list[AsyncIterator[bytes]]:
        """Raises ArtifactError if one cannot be read. Of several only the first is held meanwhile, for they may be
        large; the others are read again when it is their turn."""
        read = self._context.core.service.image_bytes
        first = data_inline(jobs[0], await read(jobs[0]))
        for job in jobs[1:]:
            await read(job)
        return [first, *(self._inline(job) for job in jobs[1:])]

    async def _inline(self, job: Job) -> AsyncIterator[bytes]:
        async for piece in data_inline(job, await self._context.core.service.image_bytes(job)):
            yield piece

    def _by_url(self, job: Job) -> AsyncIterator[bytes]:
        links = self._context.links
        return data_by_url(job, links.url(job.id, self._context.clock(), max(LINKS_S, links.lifetime_s)))


def _around(custom_id: str) -> int:
    return ANSWER_BYTES + len(to_json(custom_id))


def _foreseen(custom_id: str, images: Sequence[Mapping[str, object]], said: int, *, by_url: bool) -> int:
    """Bytes of the line's answer. Each image says what made it: the prompt, of at most the line's `said` bytes, twice
    as long where it is escaped (docs/metadata.md)."""
    if by_url:
        return _around(custom_id) + IMAGE_BYTES * len(images)
    one = images[0]
    drawn = int(str(one["width"])) * int(str(one["height"])) * BYTES_A_PIXEL[ImageFormat(str(one["format"]))]
    return _around(custom_id) + (IMAGE_BYTES + _as_base64(drawn + 2 * said)) * len(images)


def _as_base64(size: int) -> int:
    return 4 * ceil(size / 3)


def why(line: DoneLine) -> LineRefusal | None:
    """Why not all of the line's images were made; None if they were."""
    if line_expired(line):
        return EXPIRED
    for job in line.jobs:
        if job.state is JobState.CANCELLED:
            return CANCELLED
        if job.error is not None and job.error.type == UNMAKEABLE:
            return _refusal(Refusal(Kind.UNMAKEABLE, job.error.detail))
        if job.image is None:
            return _refusal(of_job(job, NAMES))
    return None


def _wrong(error: ValidationError) -> Refusal:
    return of_faults(faults(error.errors(include_url=False)))


def _refusal(refusal: Refusal) -> LineRefusal:
    said = openai_error(refusal).error
    return LineRefusal(
        said.code or refusal.kind, said.message, status_of(refusal.kind, Dialect.OPENAI), said.type, said.param
    )


def _refused(name: str, custom_id: str, request_id: str, why: LineRefusal) -> LineOutput:
    if why.status is None:
        error = LineError(code=why.code, message=why.message)
        return LineOutput(id=name, custom_id=custom_id, response=None, error=error)
    body = OpenAIErrorBody(message=why.message, type=why.type, param=why.param, code=why.code)
    response = LineResponse(status_code=why.status, request_id=request_id, body={"error": body.model_dump()})
    return LineOutput(id=name, custom_id=custom_id, response=response, error=None)
