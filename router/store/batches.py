"""`router.batches.Batches` on the store's database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router import ids
from router.batches import (
    Batch,
    BatchLease,
    DoneLine,
    Fault,
    Kept,
    LineRefusal,
    NewBatch,
    Outcome,
    Quota,
    Read,
    StoredFile,
)
from router.jobs import Job
from router.limits import Rate
from router.store import ApiKey, Repeatable, batch_rows, batch_work_rows, file_rows
from router.store.clock import Clock
from router.store.database import Database


class SqlBatches:
    def __init__(self, database: Database, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._database, self._clock, self._entropy = database, clock, entropy

    async def add_file(self, file: StoredFile, quota: Quota) -> StoredFile:
        return await self._database.write(file_rows.upload, self._clock(), file, quota)

    async def kept(self, api_key_id: str) -> Kept:
        return await self._database.read(file_rows.kept, self._clock(), api_key_id)

    async def file(self, api_key_id: str, file_id: str) -> StoredFile | None:
        return await self._database.read(file_rows.find, self._clock(), api_key_id, file_id)

    async def input_of(self, batch: Batch) -> StoredFile | None:
        return await self._database.read(file_rows.input_of, batch.api_key_id, batch.input_file_id)

    async def files(
        self, api_key_id: str, purpose: str | None, after: str | None, limit: int, *, oldest_first: bool
    ) -> Sequence[StoredFile]:
        return await self._database.read(
            file_rows.every, self._clock(), api_key_id, purpose, after, limit, oldest_first=oldest_first
        )

    async def remove_file(self, api_key_id: str, file_id: str) -> StoredFile | None:
        return await self._database.write(file_rows.remove, self._clock(), api_key_id, file_id)

    async def create(self, key: ApiKey, new: NewBatch, repeatable: Repeatable | None) -> tuple[Batch, Rate | None]:
        entropy = self._entropy(ids.ENTROPY_BYTES)
        return await self._database.write(batch_rows.create, self._clock(), entropy, key, new, repeatable)

    async def batch(self, api_key_id: str, batch_id: str) -> Batch | None:
        return await self._database.read(batch_rows.find, api_key_id, batch_id)

    async def batches(self, api_key_id: str, after: str | None, limit: int) -> Sequence[Batch]:
        return await self._database.read(batch_rows.every, api_key_id, after, limit)

    async def ask_to_cancel(self, api_key_id: str, batch_id: str) -> Batch | None:
        return await self._database.write(batch_rows.ask_to_cancel, self._clock(), api_key_id, batch_id)

    async def claim(self, ttl_ms: int) -> BatchLease | None:
        now = self._clock()
        # A look costs every second; only what there is to do costs a writer.
        if await self._database.read(batch_work_rows.due, now) is None:
            return None
        return await self._database.write(batch_work_rows.claim, now, ttl_ms)

    async def renew(self, lease: BatchLease, ttl_ms: int) -> None:
        await self._database.write(batch_work_rows.renew, self._clock(), lease, ttl_ms)

    async def release(self, lease: BatchLease, pause_ms: int) -> None:
        await self._database.write(batch_work_rows.release, self._clock(), lease, pause_ms)

    async def validated(self, lease: BatchLease, total: int, output: int, quota: Quota) -> Batch:
        return await self._database.write(batch_work_rows.validated, self._clock(), lease, total, output, quota)

    async def promise(self, lease: BatchLease, output: int, quota: Quota) -> None:
        await self._database.write(batch_work_rows.promise, self._clock(), lease, output, quota)

    async def fail(self, lease: BatchLease, faults: Sequence[Fault]) -> None:
        await self._database.write(batch_work_rows.fail, self._clock(), lease, faults)

    async def add_lines(self, lease: BatchLease, key: ApiKey, read: Read, pool_bound: int) -> Batch:
        entropies = [self._entropy(ids.ENTROPY_BYTES) for line in read.lines for _ in line.wanted]
        add = batch_work_rows.add_lines
        return await self._database.write(add, self._clock(), entropies, lease, key, read, pool_bound)

    async def lines_added(self, lease: BatchLease) -> int:
        return await self._database.read(batch_work_rows.lines_added, lease.batch.id)

    async def refusals(self, lease: BatchLease, limit: int, unless: LineRefusal) -> Sequence[Fault] | None:
        return await self._database.read(batch_work_rows.refusals, lease.batch.id, limit, unless)

    async def cancel_waiting(self, lease: BatchLease, limit: int) -> Sequence[Job]:
        return await self._database.write(batch_work_rows.cancel_waiting, self._clock(), lease, limit)

    async def busy(self, lease: BatchLease) -> bool:
        return await self._database.read(batch_work_rows.busy, lease.batch.id)

    async def finalizing(self, lease: BatchLease) -> Batch:
        return await self._database.write(batch_work_rows.finalizing, self._clock(), lease)

    async def foreseen(self, lease: BatchLease) -> int:
        return await self._database.read(batch_work_rows.foreseen, lease.batch.id)

    async def done_lines(self, lease: BatchLease, after_line: int, limit: int) -> Sequence[DoneLine]:
        return await self._database.read(batch_work_rows.done_lines, lease.batch.id, after_line, limit)

    async def end(self, lease: BatchLease, outcome: Outcome) -> None:
        await self._database.write(batch_work_rows.end, self._clock(), lease, outcome)

    async def owner(self, batch: Batch) -> ApiKey | None:
        return await self._database.read(batch_work_rows.owner, batch.api_key_id)

    async def forget(self, older_ms: int | None, limit: int) -> Sequence[str]:
        return await self._database.write(file_rows.forget, self._clock(), older_ms, limit)
