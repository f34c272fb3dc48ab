"""A keeper of batches on a real store and real files, whose clock a test moves; lines that are plain text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from router import ids
from router.artifacts import file_path
from router.artifacts.local import LocalArtifacts
from router.batches import PURPOSE_INPUT, Batch, BatchState, DoneLine, NewBatch, NewLine, Quota, StoredFile
from router.batches.desk import Checked, Desk, Words, line_made
from router.batches.keeper import Keeper
from router.choice import Terms
from router.errors import ArtifactError
from router.jobs import NewJob, Place
from router.limits import NO_LIMITS, KeyLimits
from router.store import ApiKey
from router.store.sql import SqlStore
from tests.integration.router.core_rig import eventually
from tests.stores import IMAGE, NO_TIME, SteeredClock, opened_at, request

POOL = "batch"
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class PlainWords:
    """Lines that are their own custom ids. `lost` are those whose image cannot be read, and why."""

    lost: Mapping[int, ArtifactError] = field(default_factory=dict)
    answer_bytes: int = 100
    written_bytes: int = 0
    """Of each answer, if that is more than it has to say."""
    large: frozenset[str] = frozenset()
    """Lines whose answers are ten times as long as that."""

    def check(self, batch: Batch, line: bytes) -> Checked:  # noqa: ARG002 - the protocol's
        return Checked(line.decode(), self.answer_bytes)

    async def read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        new = NewJob(request(seed=number), Terms(deadline=batch.at.expires), place=Place(batch.id, number))
        return NewLine(number, line.decode(), [new], foreseen=self.answer_bytes)

    def size(self, line: DoneLine) -> int:
        return max(self.answer_bytes, self._written(line))

    def _written(self, line: DoneLine) -> int:
        return self.written_bytes * (10 if line.custom_id in self.large else 1)

    async def render(self, batch: Batch, line: DoneLine) -> AsyncIterator[bytes]:  # noqa: ARG002 - the protocol's
        if line.refusal is None and line.line in self.lost:
            raise self.lost[line.line]
        said = {"id": line.custom_id, "made": line_made(line), "refused": line.refusal and line.refusal.code}
        yield json.dumps(said).encode().ljust(self._written(line) - 1 if line_made(line) else 0) + b"\n"


@dataclass
class Room:
    store: SqlStore
    artifacts: LocalArtifacts
    clock: SteeredClock
    drawn: int = 0

    def desk(self, bound: int = 1000, words: Words | None = None) -> Desk:
        return Desk(
            batches=self.store.batches,
            artifacts=self.artifacts,
            words=words or PlainWords(),
            bound_of=lambda _pool: bound,
            file_id=self.file_id,
            now_ms=lambda: self.clock.ms,
            announce=lambda _pool, _jobs: None,
            publish=lambda _job: None,
            quota=Quota(),
        )

    def file_id(self) -> str:
        self.drawn += 1
        return ids.file_id(self.clock.ms, self.drawn.to_bytes(ids.ENTROPY_BYTES))

    async def key(self, limits: KeyLimits = NO_LIMITS) -> ApiKey:
        return (await self.store.create_api_key("k", "0" * 64, limits)).key

    async def batch(self, key: ApiKey, lines: int, expires_ms: int | None = None, webhook: str | None = None) -> Batch:
        name = self.file_id()
        draft = await self.artifacts.draft(file_path(name))
        content = "\n".join(f"line-{n}" for n in range(lines)).encode()
        await draft.write(content)
        await draft.keep()
        until = None if expires_ms is None else self.clock.ms + expires_ms
        file = StoredFile(name, key.id, PURPOSE_INPUT, "in", len(content), file_path(name), 0, until)
        await self.store.batches.add_file(file, Quota())
        new = NewBatch(POOL, "/v1/images/generations", name, "1h", HOUR_MS, HOUR_MS, webhook=webhook)
        return (await self.store.batches.create(key, new, None))[0]

    async def now(self, batch: Batch) -> Batch:
        found = await self.store.batches.batch(batch.api_key_id, batch.id)
        assert found is not None
        return found

    async def waiting(self, count: int) -> None:
        async def so_many() -> bool:
            self.clock.advance(100)  # pauses are the database's time
            return await self.store.queued(POOL) == count

        await eventually(so_many, f"{count} jobs wait")

    async def until(self, batch: Batch, state: BatchState) -> Batch:
        async def so() -> bool:
            self.clock.advance(100)
            return (await self.now(batch)).state is state

        await eventually(so, f"the batch is {state}")
        return await self.now(batch)

    async def make(self, count: int) -> None:
        for _ in range(count):
            lease = await self.store.lease_next("a", 60_000)
            assert lease is not None
            assert await self.store.finish(lease, IMAGE, NO_TIME)

    async def lines(self, key: ApiKey, file_id: str | None) -> list[dict[str, object]]:
        file = await self.store.batches.file(key.id, file_id or "")
        assert file is not None
        text = b"".join([piece async for piece in self.artifacts.stream(file.path)])
        assert len(text) == file.bytes
        return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def room_at(database_url: str, folder: Path) -> AsyncIterator[Room]:
    clock = SteeredClock()
    async with opened_at(database_url, clock) as store:
        await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
        yield Room(store, LocalArtifacts(folder), clock)


@asynccontextmanager
async def keeping(desk: Desk) -> AsyncIterator[None]:
    running = asyncio.create_task(Keeper(desk, asyncio.Event()).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
