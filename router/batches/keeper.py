"""Works at batches: claims one at which there is something to do, does it, gives it back. One in each router process.

Several share one store: a claim is a lease, so nobody else works at the same batch meanwhile, and a router that dies
in the middle leaves it to the next, which goes on where the rows say. Lines and their jobs are one transaction; files
are written under new names, and the transaction that ends the batch names them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from router.artifacts import Artifacts, Draft, file_path
from router.batches import (
    PURPOSE_OUTPUT,
    Batch,
    Batches,
    BatchLease,
    BatchState,
    Counts,
    DoneLine,
    Fault,
    LineRefusal,
    NewLine,
    Outcome,
    Read,
    StoredFile,
)
from router.batches.lines import LineTooLongError, lines_of
from router.contract import MAX_BATCH_JOBS
from router.errors import ArtifactError, KeyQueueFullError, LeaseLostError, QueueFullError, StoreUnavailableError
from router.jobs import Job

log = structlog.get_logger(__name__)

PLACES = 4
"""Batches at which one process works at once: one with a large output must not keep the others waiting."""
IDLE_S = 1.0
"""How often the store is asked although nobody said that there is something to do."""
LEASE_MS = 12_000
"""After it, a batch whose router died is another's to go on with; renewed three times in this."""
LOAD_AT_ONCE = 400
"""Lines that become jobs in one transaction: it must not keep the others from writing for long."""
CHECK_AT_ONCE = 200
"""Lines that are read before others have their turn: some milliseconds' worth."""
WRITE_AT_ONCE = 200
CANCEL_AT_ONCE = 500
FULL_PAUSE_MS = 2000
"""Before a batch that met a bound asks for room again."""
TROUBLE_PAUSE_MS = 5000
CANCEL_PAUSE_MS = 500
FAULTS_SHOWN = 100


class Words(Protocol):
    """The dialect in which lines and answers are."""

    def check(self, batch: Batch, line: bytes) -> str:
        """The line's custom id. Raises BadLineError if it is none of a request to this batch's endpoint."""
        ...

    def read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        """What a line that has passed `check` wants."""
        ...

    def render(self, batch: Batch, line: DoneLine) -> AsyncIterator[bytes]:
        """The answer, as a line of the output or, unless `line_made`, of the error file."""
        ...


class BadLineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(frozen=True, slots=True)
class Desk:
    """What a keeper works with. `bound_of` gives how many jobs may wait in a pool, `file_id` draws a name, `announce`
    wakes the workers of a pool, `publish` tells who watches a job."""

    batches: Batches
    artifacts: Artifacts
    words: Words
    bound_of: Callable[[str], int]
    file_id: Callable[[], str]
    now_ms: Callable[[], int]
    announce: Callable[[str, int], None]
    publish: Callable[[Job], None]


class Keeper:
    """`news` is set when there may be something to do, and `wake_deliverer` called when there may be a new webhook."""

    def __init__(self, desk: Desk, news: asyncio.Event, wake_deliverer: Callable[[], None] = lambda: None) -> None:
        self._desk, self._news, self._wake_deliverer = desk, news, wake_deliverer
        self._working: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled. What is under way is left then, for the next router to go on with."""
        try:
            while True:
                self._news.clear()
                await self._fill()
                news = asyncio.create_task(self._news.wait())
                try:
                    await asyncio.wait({news, *self._working}, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
        finally:
            for task in self._working:
                task.cancel()
            await asyncio.gather(*self._working, return_exceptions=True)

    async def _fill(self) -> None:
        while len(self._working) < PLACES:
            lease = await self._desk.batches.claim(LEASE_MS)
            if lease is None:
                return
            task = asyncio.create_task(self._hold(lease))
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    async def _hold(self, lease: BatchLease) -> None:
        """Work under the lease, which is renewed meanwhile; what goes wrong is tried again after a while."""
        pause_ms = TROUBLE_PAUSE_MS
        try:
            pause_ms = await self._renewed(lease, self._work(lease))
            self._wake_deliverer()
        except LeaseLostError:
            log.warning("batch_lease_lost", batch=lease.batch.id)
            return
        except (StoreUnavailableError, ArtifactError) as error:
            log.error("batch_in_trouble", batch=lease.batch.id, error=str(error))  # noqa: TRY400 - its trace says nothing
        except Exception:  # one batch must not end the others' work: it is reported, and tried again
            log.exception("batch_failed", batch=lease.batch.id)
        try:
            await self._desk.batches.release(lease, pause_ms)
        except StoreUnavailableError:
            return  # the lease runs out by itself
        if pause_ms == 0:
            self._news.set()

    async def _renewed(self, lease: BatchLease, work: Coroutine[object, object, int]) -> int:
        working = asyncio.create_task(work)
        beating = asyncio.create_task(self._beat(lease))
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            beating.result()
            raise LeaseLostError(lease.batch.id)
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    async def _beat(self, lease: BatchLease) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            await self._desk.batches.renew(lease, LEASE_MS)

    async def _work(self, lease: BatchLease) -> int:
        """What there is to do just now; for how many milliseconds there is nothing more."""
        batch = lease.batch
        if not batch.validated:
            if batch.state is BatchState.CANCELLING:
                await self._desk.batches.end(lease, Outcome(BatchState.CANCELLED, Counts(), None, None))
                return 0
            return await self._validate(lease)
        if not batch.loaded:
            return await self._load(lease)
        if batch.state is BatchState.CANCELLING and await self._cancel(lease):
            return CANCEL_PAUSE_MS
        if await self._desk.batches.busy(lease):
            return 0  # there was nothing to do: whoever asks next is not given it
        return await self._finalize(lease)

    async def _validate(self, lease: BatchLease) -> int:
        """The whole file before anything is made of it, as OpenAI does."""
        total, faults = 0, list[Fault]()
        try:
            total, faults = await self._checked(lease.batch)
        except LineTooLongError as long:
            faults = [Fault("line_too_long", str(long), long.line)]
        except _NoInputError as gone:
            faults = [Fault("invalid_input_file", str(gone), param="input_file_id")]
        if total > MAX_BATCH_JOBS:
            faults = [Fault("too_many_requests", f"a batch has at most {MAX_BATCH_JOBS} requests; send several")]
        if not total and not faults:
            faults = [Fault("empty_file", "there is no request in the file; put one on each line")]
        if faults:
            await self._desk.batches.fail(lease, faults)
            log.info("batch_refused", batch=lease.batch.id, faults=len(faults))
        else:
            await self._desk.batches.validated(lease, total)
        return 0

    async def _checked(self, batch: Batch) -> tuple[int, list[Fault]]:
        """How many requests the file holds, and what is wrong with it; after too much of either, as far as it got."""
        faults, seen, number = list[Fault](), set[str](), 0
        async for _, line in lines_of(self._stream(await self._input(batch))):
            number += 1
            if number % CHECK_AT_ONCE == 0:
                await asyncio.sleep(0)
            if not line.strip():
                continue
            try:
                name = self._desk.words.check(batch, line)
            except BadLineError as bad:
                faults.append(Fault(bad.code, bad.message, number, bad.param))
                name = f"\0{number}"  # it counts
            if name in seen:
                faults.append(Fault("duplicate_custom_id", f"'{name[:64]}' came before", number, "custom_id"))
            seen.add(name)
            if len(faults) >= FAULTS_SHOWN or len(seen) > MAX_BATCH_JOBS:
                break
        return len(seen), faults

    async def _load(self, lease: BatchLease) -> int:
        """Jobs of the lines that have none yet. What meets a bound waits for room."""
        batch = lease.batch
        key = await self._desk.batches.owner(batch)
        if key is None:
            await self._desk.batches.fail(lease, [Fault("key_revoked", "its API key is no longer good")])
            return 0
        source = await self._input(batch)
        lines, number, end = list[tuple[int, NewLine]](), batch.lines_read, batch.read_to
        made = 0
        async for end, line in lines_of(self._stream(source, batch.read_to), batch.read_to):
            number += 1
            if line.strip():
                lines.append((end, self._read(batch, number, line)))
            if len(lines) == LOAD_AT_ONCE:
                made += await self._add(lease, lines, end, number, whole=False)
                if lines:
                    return FULL_PAUSE_MS
                await asyncio.sleep(0)
        made += await self._add(lease, lines, end, number, whole=True)
        if lines:
            return FULL_PAUSE_MS
        log.info("batch_loaded", batch=batch.id, jobs=made)
        if batch.state is BatchState.IN_PROGRESS:
            faults = await self._desk.batches.refusals(lease, FAULTS_SHOWN)
            if faults:
                await self._desk.batches.fail(lease, faults)
        return 0

    def _read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        asked = self._desk.words.read(batch, number, line)
        if batch.state is BatchState.CANCELLING:
            return NewLine(number, asked.custom_id, refusal=CANCELLED)
        if batch.at.expires <= self._desk.now_ms():
            return NewLine(number, asked.custom_id, refusal=EXPIRED)
        return asked

    async def _add(
        self, lease: BatchLease, lines: list[tuple[int, NewLine]], end: int, number: int, *, whole: bool
    ) -> int:
        """Commit as many of the lines as there is room for, leave the others in `lines`. How many jobs it were."""
        key = await self._desk.batches.owner(lease.batch)
        if key is None:
            raise LeaseLostError(lease.batch.id)
        bound, made, some = self._desk.bound_of(lease.batch.pool), 0, len(lines)
        while True:
            few = some < len(lines)
            read_to, at = lines[some - 1][0] if few else end, lines[some - 1][1].line if few else number
            taken = [line for _, line in lines[:some]]
            try:
                read = Read(taken, read_to, at, whole and not few)
                await self._desk.batches.add_lines(lease, key, read, bound)
            except (QueueFullError, KeyQueueFullError) as full:
                if some == 1:
                    if not isinstance(full, KeyQueueFullError) or full.allowed >= len(taken[0].wanted):
                        return made
                    said = f"this API key may have {full.allowed} jobs at once, and the line asks for more"
                    refusal = LineRefusal("rate_limit_exceeded", said, 429, "requests")
                    lines[0] = lines[0][0], replace(taken[0], wanted=(), refusal=refusal)
                some = max(1, some // 2)
                continue
            jobs = sum(len(line.wanted) for line in taken)
            made += jobs
            if jobs:
                self._desk.announce(lease.batch.pool, jobs)
            del lines[:some]
            if not lines:
                return made
            some = min(some, len(lines))

    async def _cancel(self, lease: BatchLease) -> bool:
        """Cancel what waits; whether something is left that has to end by itself: an image that is begun is made."""
        while True:
            cancelled = await self._desk.batches.cancel_waiting(lease, CANCEL_AT_ONCE)
            for job in cancelled:
                self._desk.publish(job)
            if len(cancelled) < CANCEL_AT_ONCE:
                return await self._desk.batches.busy(lease)

    async def _finalize(self, lease: BatchLease) -> int:
        batch = await self._desk.batches.finalizing(lease)
        output, errors = _Output(self._desk, batch, "output"), _Output(self._desk, batch, "error")
        completed, failed, expired, after = 0, 0, False, 0
        try:
            while lines := await self._desk.batches.done_lines(lease, after, WRITE_AT_ONCE):
                for line in lines:
                    made = line_made(line)
                    async for piece in self._desk.words.render(batch, line):
                        await (output if made else errors).write(piece)
                    completed, failed = completed + made, failed + (not made)
                    expired = expired or line_expired(line)
                after = lines[-1].line
            state = BatchState.EXPIRED if expired else BatchState.COMPLETED
            if batch.state is BatchState.CANCELLING:
                state = BatchState.CANCELLED
            counts = Counts(batch.counts.total, completed, failed)
            await self._desk.batches.end(lease, Outcome(state, counts, await output.kept(), await errors.kept()))
        except BaseException:  # whatever it is: half a file is of no use, and it is raised again
            await output.drop()
            await errors.drop()
            raise
        log.info("batch_ended", batch=batch.id, state=state.value, completed=completed, failed=failed)
        return 0

    async def _input(self, batch: Batch) -> StoredFile:
        file = await self._desk.batches.file(batch.api_key_id, batch.input_file_id)
        if file is None:
            raise _NoInputError(f"there is no file {batch.input_file_id} any more")
        return file

    def _stream(self, file: StoredFile, begin: int = 0) -> AsyncIterator[bytes]:
        return self._desk.artifacts.stream(file.path, begin)


class _NoInputError(ArtifactError):
    pass


EXPIRED = LineRefusal("batch_expired", "the batch's completion window ended before this request was begun")
CANCELLED = LineRefusal("batch_cancelled", "the batch was cancelled before this request was begun")


def line_made(line: DoneLine) -> bool:
    return line.refusal is None and all(job.image is not None for job in line.jobs)


def line_expired(line: DoneLine) -> bool:
    return line.refusal == EXPIRED or any(job.state.value == "expired" for job in line.jobs)


class _Output:
    """A file that is begun with its first line: a batch without errors has no error file."""

    def __init__(self, desk: Desk, batch: Batch, what: str) -> None:
        self._desk, self._batch, self._what = desk, batch, what
        self._id = desk.file_id()
        self._draft: Draft | None = None
        self._bytes = 0

    async def write(self, piece: bytes) -> None:
        if self._draft is None:
            self._draft = await self._desk.artifacts.draft(file_path(self._id))
        await self._draft.write(piece)
        self._bytes += len(piece)

    async def kept(self) -> StoredFile | None:
        if self._draft is None:
            return None
        await self._draft.keep()
        name = f"{self._batch.id}_{self._what}.jsonl"
        expires = self._desk.now_ms() + self._batch.output_ms
        return StoredFile(
            self._id, self._batch.api_key_id, PURPOSE_OUTPUT, name, self._bytes, file_path(self._id), 0, expires
        )

    async def drop(self) -> None:
        if self._draft is not None:
            await self._draft.drop()
