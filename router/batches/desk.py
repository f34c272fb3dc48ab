"""What a keeper of batches works with, and why a line has no image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from router.artifacts import Artifacts
from router.batches import Batch, Batches, BatchState, DoneLine, LineRefusal, NewLine, Quota
from router.batches.lines import LineTooLongError
from router.errors import ArtifactGoneError, RouterError
from router.jobs import Job


@dataclass(frozen=True, slots=True)
class Checked:
    """A line as far as it can be judged before anything is made of it; its answer is likely to take no more than
    `output` bytes."""

    custom_id: str
    output: int = 0


class Words(Protocol):
    """The dialect in which lines and answers are."""

    def check(self, batch: Batch, line: bytes) -> Checked:
        """Raises BadLineError if the line is none of a request to this batch's endpoint."""
        ...

    async def read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        """What a line that has passed `check` wants."""
        ...

    def size(self, line: DoneLine) -> int:
        """Bytes of the answer, at the most, by its images as they are stored."""
        ...

    def render(self, batch: Batch, line: DoneLine) -> AsyncIterator[bytes]:
        """The answer, as a line of the output or, unless `line_made`, of the error file.

        Of an image that cannot be read it raises ArtifactError before the first piece.
        """
        ...


class BadLineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(frozen=True, slots=True)
class Desk:
    """What a keeper works with. `bound_of` gives how many jobs may wait in a pool, `file_id` draws a name, `announce`
    wakes the workers of a pool, `publish` tells who watches a job; `quota` is each key's."""

    batches: Batches
    artifacts: Artifacts
    words: Words
    bound_of: Callable[[str], int]
    file_id: Callable[[], str]
    now_ms: Callable[[], int]
    announce: Callable[[str, int], None]
    publish: Callable[[Job], None]
    quota: Quota


EXPIRED = LineRefusal("batch_expired", "the batch's completion window ended before this request was begun")
CANCELLED = LineRefusal("batch_cancelled", "the batch was cancelled before this request was begun")

INPUT_LOST = LineRefusal("invalid_input_file", "the input file cannot be read any more; upload it again")
IMAGE_LOST = LineRefusal(
    "image_lost", "the image was made, and cannot be read any more; ask for it again", 500, "server_error"
)


def no_room(line: DoneLine) -> LineRefusal:
    """The line's images were made, and its answer is more than its key's files have room for."""
    jobs = ", ".join(job.id for job in line.jobs)
    again = "" if line.by_url else ", with response_format url"
    return LineRefusal(
        "output_too_large",
        "the images were made, and this API key has no room for the answer in its files: fetch each image by its job "
        f"(GET /v1/jobs/{{id}}/image of {jobs}), or delete files and ask again{again}",
        403,
    )


def over(batch: Batch, now_ms: int) -> LineRefusal | None:
    """Why no line of the batch becomes a job any more."""
    if batch.state is BatchState.CANCELLING:
        return CANCELLED
    return EXPIRED if batch.at.expires <= now_ms else None


def final(batch: Batch, error: RouterError, now_ms: int) -> bool:
    """Whether what could not be read is not asked for again: a batch always ends, and soon if it is cancelled."""
    return isinstance(error, (ArtifactGoneError, LineTooLongError)) or over(batch, now_ms) is not None


def line_made(line: DoneLine) -> bool:
    return line.refusal is None and all(job.image is not None for job in line.jobs)


def line_expired(line: DoneLine) -> bool:
    return line.refusal == EXPIRED or any(job.state.value == "expired" for job in line.jobs)
