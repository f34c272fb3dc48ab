"""Batches: a file of requests, one a line, that becomes jobs, and files with what came of them.

A batch is a row that any router may work at, under a lease: who holds it validates the file, makes jobs of its lines
some hundred at a time, and writes the output when all have ended (`keeper`). A router that dies in the middle loses
nothing: the rows say how far it came, in the transaction that made it so. Whose words a line is in, and an answer, is
`router.api.batch_lines`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from router.errors import FilesFullError
from router.jobs import Job, NewJob
from router.limits import Rate

if TYPE_CHECKING:
    from router.store import ApiKey, Repeatable

PURPOSE_INPUT, PURPOSE_OUTPUT = "batch", "batch_output"

ERROR_BYTES = 1024
"""Foreseen for a line that becomes no job: why has to be said, too."""


def mebibytes(size: int) -> str:
    """For people: 0.2 MiB, 1,234 MiB."""
    return f"{size / 2**20:,.1f} MiB" if size < 10 * 2**20 else f"{size // 2**20:,} MiB"


class BatchState(StrEnum):
    """validating -> in_progress -> finalizing -> completed | expired; validating -> failed;
    validating | in_progress | finalizing -> cancelling -> cancelled."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    FAILED = "failed"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`path` is where the artifact store has its bytes. Times are milliseconds since the epoch."""

    id: str
    api_key_id: str
    purpose: str
    filename: str
    bytes: int
    path: str
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class Quota:
    """What one key's files may be together, those included that its open batches may still write."""

    files: int = 10_000
    bytes: int = 256 * 2**30
    """Room for the answers of 50,000 lines that say nothing of size or format: 196 GiB at most."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one key's files are together now; `promised` are the bytes that its open batches may still write."""

    files: int
    bytes: int
    promised: int

    def room(self, quota: Quota) -> int:
        """For so many bytes more. (The number of files bounds what is uploaded, not what a batch may answer.)"""
        return max(0, quota.bytes - self.bytes - self.promised)

    def check_upload(self, quota: Quota, size: int) -> None:
        """Raises FilesFullError where one more file of so many bytes is too much."""
        if self.files >= quota.files:
            raise FilesFullError(f"this API key keeps {self.files} files, and may keep {quota.files}")
        if size > self.room(quota):
            free = f"room for {mebibytes(self.room(quota))} more"
            raise FilesFullError(f"this API key may keep {mebibytes(quota.bytes)} of files, and has {free}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a batch as a whole, or with one line of its file (the first is 1)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines: all of them, those whose images are all made, those that will have no answer but an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class NewBatch:
    """`window_ms` from now is the jobs' deadline; `output_ms` is how long the output is kept."""

    pool: str
    endpoint: str
    input_file_id: str
    window: str
    window_ms: int
    output_ms: int
    metadata: Mapping[str, str] | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class Moments:
    """When a batch became what; milliseconds since the epoch."""

    created: int
    expires: int
    in_progress: int | None = None
    finalizing: int | None = None
    cancelling: int | None = None
    ended: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """`read_to` is the byte of the file, and `lines_read` the line, up to which there are jobs; `loaded` says that
    this is its end. `counts` are final once it has ended. `promised` are the bytes that its answers may take."""

    id: str
    api_key_id: str
    pool: str
    endpoint: str
    input_file_id: str
    window: str
    output_ms: int
    metadata: Mapping[str, str] | None
    webhook: str | None
    state: BatchState
    at: Moments
    counts: Counts
    faults: Sequence[Fault]
    validated: bool
    loaded: bool
    read_to: int
    lines_read: int
    output_file_id: str | None
    error_file_id: str | None
    promised: int = 0


@dataclass(frozen=True, slots=True)
class BatchLease:
    """The right to work at a batch, as an attempt at a job is: numbered, and for a while."""

    batch: Batch
    attempt: int


@dataclass(frozen=True, slots=True)
class LineRefusal:
    """Why a line became no job. With a `status` it is the answer that the request would have had by itself."""

    code: str
    message: str
    status: int | None = None
    type: str = "invalid_request_error"
    param: str | None = None


@dataclass(frozen=True, slots=True)
class NewLine:
    """One line, and the jobs that it wants, or why it gets none. Its answer is likely to take no more than `foreseen`
    bytes, which are part of what its batch was promised."""

    line: int
    custom_id: str
    wanted: Sequence[NewJob] = ()
    by_url: bool = False
    refusal: LineRefusal | None = None
    foreseen: int = ERROR_BYTES


@dataclass(frozen=True, slots=True)
class Read:
    """How far the file has been read, after these lines."""

    lines: Sequence[NewLine]
    read_to: int
    lines_read: int
    whole: bool


@dataclass(frozen=True, slots=True)
class DoneLine:
    """One line, and its jobs in their order, all of which have ended."""

    line: int
    custom_id: str
    by_url: bool
    refusal: LineRefusal | None
    jobs: Sequence[Job] = field(default_factory=tuple)
    foreseen: int = ERROR_BYTES


@dataclass(frozen=True, slots=True)
class Outcome:
    state: BatchState
    counts: Counts
    output: StoredFile | None
    errors: StoredFile | None


class Batches(Protocol):
    """Every method is one transaction. May raise StoreUnavailableError; then nothing has changed.

    What takes a lease raises LeaseLostError if it no longer holds; then nothing has changed either.
    """

    async def add_file(self, file: StoredFile, quota: Quota) -> StoredFile:
        """Its `created_at` is the database's; the rest is as given. Raises FilesFullError."""
        ...

    async def kept(self, api_key_id: str) -> Kept: ...

    async def file(self, api_key_id: str, file_id: str) -> StoredFile | None: ...

    async def input_of(self, batch: Batch) -> StoredFile | None:
        """Also one that has expired meanwhile."""
        ...

    async def files(
        self, api_key_id: str, purpose: str | None, after: str | None, limit: int, *, oldest_first: bool
    ) -> Sequence[StoredFile]: ...

    async def remove_file(self, api_key_id: str, file_id: str) -> StoredFile | None:
        """What was removed. Raises FileInUseError while an open batch reads it."""
        ...

    async def create(self, key: ApiKey, new: NewBatch, repeatable: Repeatable | None) -> tuple[Batch, Rate | None]:
        """Raises RateLimitedError, IdempotencyError."""
        ...

    async def batch(self, api_key_id: str, batch_id: str) -> Batch | None: ...

    async def batches(self, api_key_id: str, after: str | None, limit: int) -> Sequence[Batch]:
        """The newest first, from the one after `after` on."""
        ...

    async def ask_to_cancel(self, api_key_id: str, batch_id: str) -> Batch | None:
        """As it is then: cancelling, or what it was if it has ended."""
        ...

    async def claim(self, ttl_ms: int) -> BatchLease | None:
        """A lease on a batch at which there is something to do."""
        ...

    async def renew(self, lease: BatchLease, ttl_ms: int) -> None: ...

    async def release(self, lease: BatchLease, pause_ms: int) -> None:
        """Give it back; nobody looks at it for `pause_ms`. A lost one is no error."""
        ...

    async def validated(self, lease: BatchLease, total: int, output: int, quota: Quota) -> Batch:
        """Its file has so many requests: in progress, unless it is cancelling meanwhile. Its answers take at most
        `output` bytes, which are promised to it. Raises OutputTooLargeError where there is no room for them."""
        ...

    async def promise(self, lease: BatchLease, output: int, quota: Quota) -> None:
        """Its answers take `output` bytes, which is more than was foreseen: from now on these are promised to it.
        Raises OutputTooLargeError where there is no room for them."""
        ...

    async def fail(self, lease: BatchLease, faults: Sequence[Fault]) -> None: ...

    async def add_lines(self, lease: BatchLease, key: ApiKey, read: Read, pool_bound: int) -> Batch:
        """These lines, their jobs, and how far the file is read: all of it, or nothing. The batch as it is then: it may
        have been asked to cancel.

        Raises QueueFullError, KeyQueueFullError where the jobs would pass a bound.
        """
        ...

    async def lines_added(self, lease: BatchLease) -> int: ...

    async def refusals(self, lease: BatchLease, limit: int, unless: LineRefusal) -> Sequence[Fault] | None:
        """Why lines became no jobs; None if any line became one, or was refused for the reason `unless`."""
        ...

    async def cancel_waiting(self, lease: BatchLease, limit: int) -> Sequence[Job]:
        """Cancel at most `limit` of the batch's jobs that have not started: those."""
        ...

    async def busy(self, lease: BatchLease) -> bool:
        """Whether a job of the batch has not ended."""
        ...

    async def finalizing(self, lease: BatchLease) -> Batch: ...

    async def foreseen(self, lease: BatchLease) -> int:
        """Bytes that all its lines' answers were foreseen to take."""
        ...

    async def done_lines(self, lease: BatchLease, after_line: int, limit: int) -> Sequence[DoneLine]: ...

    async def end(self, lease: BatchLease, outcome: Outcome) -> None:
        """Commit the files and the end; its owner will be told, promised in the same transaction."""
        ...

    async def owner(self, batch: Batch) -> ApiKey | None:
        """The key, with its limits as they are now."""
        ...

    async def forget(self, older_ms: int | None, limit: int) -> Sequence[str]:
        """Forget what is over: expired files, whose paths are returned; lines of ended batches; with `older_ms`
        batches that ended so long ago. At most `limit` of each."""
        ...
