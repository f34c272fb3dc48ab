"""Works at batches: claims one at which there is something to do, does it, gives it back. One in each router process.

Several share one store: a claim is a lease, so nobody else works at the same batch meanwhile, and a router that dies
in the middle leaves it to the next, which goes on where the rows say. Lines and their jobs are one transaction; files
are written under new names, and the transaction that ends the batch names them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from itertools import accumulate, takewhile

import structlog

from router.batches import (
    Batch,
    BatchLease,
    BatchState,
    Counts,
    Fault,
    LineRefusal,
    NewLine,
    Outcome,
    Read,
    StoredFile,
)
from router.batches.desk import (
    EXPIRED,
    INPUT_LOST,
    BadLineError,
    Desk,
    final,
    line_expired,
    over,
)
from router.batches.lines import LineTooLongError, lines_of
from router.batches.output import Answers
from router.contract import MAX_BATCH_JOBS
from router.errors import (
    ArtifactError,
    ArtifactGoneError,
    KeyQueueFullError,
    LeaseLostError,
    OutputTooLargeError,
    QueueFullError,
    StoreUnavailableError,
)
from router.limits import KeyLimits
from router.supervise import keep_filled

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
FULL_PAUSE_MS, KEY_FULL_PAUSE_MS = 2000, 500
"""Before a batch that met a bound asks for room again: the pool's, or its key's, which few jobs may fill."""
TROUBLE_PAUSE_MS = 5000
CANCEL_PAUSE_MS = 500
FAULTS_SHOWN = 100


class Keeper:
    """`news` is set when there may be something to do, and `wake_deliverer` called when there may be a new webhook."""

    def __init__(self, desk: Desk, news: asyncio.Event, wake_deliverer: Callable[[], None] = lambda: None) -> None:
        self._desk, self._news, self._wake_deliverer = desk, news, wake_deliverer
        self._working: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled. What is under way is left then, for the next router to go on with."""
        await keep_filled(self._news, self._working, self._fill, IDLE_S)

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
            if batch.state is BatchState.CANCELLING:
                await self._cancel(lease)  # its jobs should not begin while the rest of its lines is read
            return await self._load(lease)
        if batch.state is BatchState.CANCELLING and await self._cancel(lease):
            return CANCEL_PAUSE_MS
        if await self._desk.batches.busy(lease):
            return 0  # there was nothing to do: whoever asks next is not given it
        return await self._finalize(lease)

    async def _validate(self, lease: BatchLease) -> int:
        """The whole file before anything is made of it, as OpenAI does."""
        total, output, faults = 0, 0, list[Fault]()
        try:
            total, output, faults = await self._checked(lease.batch)
        except LineTooLongError as long:
            faults = [Fault("line_too_long", str(long), long.line)]
        except ArtifactError as error:
            if not final(lease.batch, error, self._desk.now_ms()):
                raise
            log.error("batch_input_lost", batch=lease.batch.id, error=str(error))  # noqa: TRY400 - its trace says nothing
            faults = [Fault(INPUT_LOST.code, INPUT_LOST.message, param="input_file_id")]
        if total > MAX_BATCH_JOBS:
            faults = [Fault("too_many_requests", f"a batch has at most {MAX_BATCH_JOBS} requests; send several")]
        if not total and not faults:
            faults = [Fault("empty_file", "there is no request in the file; put one on each line")]
        if not faults:
            try:
                await self._desk.batches.validated(lease, total, output, self._desk.quota)
            except OutputTooLargeError as large:
                faults = [Fault("output_too_large", str(large), param="input_file_id")]
        if faults:
            await self._desk.batches.fail(lease, faults)
            log.info("batch_refused", batch=lease.batch.id, faults=len(faults))
        return 0

    async def _checked(self, batch: Batch) -> tuple[int, int, list[Fault]]:
        """How many requests the file holds, how many bytes their answers take at most, and what is wrong with it;
        after too much of it, as far as it got."""
        faults, seen, number, output = list[Fault](), set[str](), 0, 0
        async for _, line in lines_of(self._stream(await self._input(batch))):
            number += 1
            if number % CHECK_AT_ONCE == 0:
                await asyncio.sleep(0)
            if not line.strip():
                continue
            try:
                checked = self._desk.words.check(batch, line)
                name, output = checked.custom_id, output + checked.output
            except BadLineError as bad:
                faults.append(Fault(bad.code, bad.message, number, bad.param))
                name = f"\0{number}"  # it counts
            if name in seen:
                faults.append(Fault("duplicate_custom_id", f"'{name[:64]}' came before", number, "custom_id"))
            seen.add(name)
            if len(faults) >= FAULTS_SHOWN or len(seen) > MAX_BATCH_JOBS:
                break
        return len(seen), output, faults

    async def _load(self, lease: BatchLease) -> int:
        """Jobs of the lines that have none yet. What meets a bound waits for room."""
        batch = lease.batch
        key = await self._desk.batches.owner(batch)
        if key is None:
            await self._desk.batches.fail(lease, [Fault("key_revoked", "its API key is no longer good")])
            return 0
        lines, number, end = list[tuple[int, NewLine]](), batch.lines_read, batch.read_to
        at_once, pause_ms = _stride(key.limits)
        try:
            source = await self._input(batch)
            async for end, line in lines_of(self._stream(source, batch.read_to), batch.read_to):
                number += 1
                if line.strip():
                    lines.append((end, await self._read(batch, number, line)))
                if len(lines) == at_once:
                    if not await self._add(lease, lines, end, number, whole=False):
                        return pause_ms if lines else 0
                    await asyncio.sleep(0)
        except (ArtifactError, LineTooLongError) as error:  # the latter: it is not what was validated
            if not final(batch, error, self._desk.now_ms()):
                raise
            log.error("batch_input_lost", batch=batch.id, error=str(error))  # noqa: TRY400 - its trace says nothing
            going_on = await self._add(lease, lines, end, number, whole=False)
            going_on = going_on and await self._refuse_rest(lease, end, number)
        else:
            going_on = await self._add(lease, lines, end, number, whole=True)
        if not going_on:
            return pause_ms if lines else 0
        log.info("batch_loaded", batch=batch.id, lines=number)
        await self._fail_if_all_wrong(lease)
        return 0

    async def _fail_if_all_wrong(self, lease: BatchLease) -> None:
        """A batch that has run out of time has not failed but expired, which is found when its files are written."""
        if lease.batch.state is not BatchState.IN_PROGRESS:
            return
        faults = await self._desk.batches.refusals(lease, FAULTS_SHOWN, unless=EXPIRED)
        if faults:
            await self._desk.batches.fail(lease, faults)

    async def _read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        asked, refusal = await self._desk.words.read(batch, number, line), over(batch, self._desk.now_ms())
        return asked if refusal is None else NewLine(number, asked.custom_id, refusal=refusal)

    async def _refuse_rest(self, lease: BatchLease, end: int, number: int) -> bool:
        """The lines that cannot be read any more, whose custom ids nobody knows; as `_add`."""
        batch, refusal = lease.batch, over(lease.batch, self._desk.now_ms()) or INPUT_LOST
        left = batch.counts.total - await self._desk.batches.lines_added(lease)
        while left > 0:
            some = min(left, LOAD_AT_ONCE)
            lines = [(end, NewLine(number + i, "", refusal=refusal)) for i in range(1, some + 1)]
            left, number = left - some, number + some
            if not await self._add(lease, lines, end, number, whole=False):
                return False
        return await self._add(lease, [], end, number, whole=True)

    async def _add(
        self, lease: BatchLease, lines: list[tuple[int, NewLine]], end: int, number: int, *, whole: bool
    ) -> bool:
        """Commit as many of the lines as there is room for; whether to go on.

        If not, those in `lines` found no room, or there are none in it: then it is to be cancelled.
        """
        key = await self._desk.batches.owner(lease.batch)
        if key is None:
            raise LeaseLostError(lease.batch.id)
        bound, some = self._desk.bound_of(lease.batch.pool), len(lines)
        while True:
            few = some < len(lines)
            read_to, at = lines[some - 1][0] if few else end, lines[some - 1][1].line if few else number
            taken = [line for _, line in lines[:some]]
            try:
                read = Read(taken, read_to, at, whole and not few)
                changed = await self._desk.batches.add_lines(lease, key, read, bound)
            except (QueueFullError, KeyQueueFullError) as full:
                if some == 1:
                    if not isinstance(full, KeyQueueFullError) or full.allowed >= len(taken[0].wanted):
                        return False
                    said = f"this API key may have {full.allowed} jobs at once, and the line asks for more"
                    refusal = LineRefusal("rate_limit_exceeded", said, 429, "requests")
                    lines[0] = lines[0][0], replace(taken[0], wanted=(), refusal=refusal)
                some = max(1, fitting_of(taken, full.room))
                continue
            jobs = sum(len(line.wanted) for line in taken)
            if jobs:
                self._desk.announce(lease.batch.pool, jobs)
            del lines[:some]
            if changed.state is not lease.batch.state and not changed.loaded:
                lines.clear()  # they are read again, to be refused
                return False
            if not lines:
                return True
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
        answers = Answers(self._desk, lease, batch, await self._desk.batches.foreseen(lease))
        completed, failed, expired, after = 0, 0, False, 0
        try:
            while lines := await self._desk.batches.done_lines(lease, after, WRITE_AT_ONCE):
                for line in lines:
                    made = await answers.write(line)
                    completed, failed = completed + made, failed + (not made)
                    expired = expired or line_expired(line)
                after = lines[-1].line
            state = BatchState.EXPIRED if expired else BatchState.COMPLETED
            if batch.state is BatchState.CANCELLING:
                state = BatchState.CANCELLED
            counts = Counts(batch.counts.total, completed, failed)
            await self._desk.batches.end(lease, Outcome(state, counts, *await answers.kept()))
        except BaseException:  # whatever it is: half a file is of no use, and it is raised again
            await answers.drop()
            raise
        log.info("batch_ended", batch=batch.id, state=state.value, completed=completed, failed=failed)
        return 0

    async def _input(self, batch: Batch) -> StoredFile:
        file = await self._desk.batches.input_of(batch)
        if file is None:
            raise ArtifactGoneError(f"there is no file {batch.input_file_id} any more")
        return file

    def _stream(self, file: StoredFile, begin: int = 0) -> AsyncIterator[bytes]:
        return self._desk.artifacts.stream(file.path, begin)


def _stride(limits: KeyLimits) -> tuple[int, int]:
    """How many lines are read at once, and the pause before more are tried where they found no room."""
    if limits.waiting is None:
        return LOAD_AT_ONCE, FULL_PAUSE_MS
    return min(LOAD_AT_ONCE, max(1, limits.waiting + (limits.running or 0))), KEY_FULL_PAUSE_MS


def fitting_of(lines: Sequence[NewLine], room: int) -> int:
    """How many of the lines, from the first, have together no more jobs than there is room for; not all of them."""
    jobs = accumulate(len(line.wanted) for line in lines)
    return min(sum(1 for _ in takewhile(lambda total: total <= room, jobs)), len(lines) - 1)
