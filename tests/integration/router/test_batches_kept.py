"""Keepers on real stores: what expires, what meets a bound, and what a dead one leaves to the next."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from router import ids
from router.artifacts import file_path
from router.artifacts.local import LocalArtifacts
from router.batches import PURPOSE_INPUT, Batch, BatchState, DoneLine, Fault, NewBatch, NewLine, Quota, StoredFile
from router.batches.desk import Checked, Desk, Words, line_made
from router.batches.keeper import LOAD_AT_ONCE, Keeper, fitting_of
from router.choice import Terms
from router.errors import ArtifactError, ArtifactGoneError, FilesFullError, LeaseLostError
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

    def check(self, batch: Batch, line: bytes) -> Checked:  # noqa: ARG002 - the protocol's
        return Checked(line.decode(), self.answer_bytes)

    def read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        new = NewJob(request(seed=number), Terms(deadline=batch.at.expires), place=Place(batch.id, number))
        return NewLine(number, line.decode(), [new])

    async def render(self, batch: Batch, line: DoneLine) -> AsyncIterator[bytes]:  # noqa: ARG002 - the protocol's
        if line.refusal is None and line.line in self.lost:
            raise self.lost[line.line]
        said = {"id": line.custom_id, "made": line_made(line), "refused": line.refusal and line.refusal.code}
        yield json.dumps(said).encode() + b"\n"


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


@pytest.fixture
async def room(database_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    clock = SteeredClock()
    async with opened_at(database_url, clock) as store:
        await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
        yield Room(store, LocalArtifacts(tmp_path), clock)


@asynccontextmanager
async def keeping(desk: Desk) -> AsyncIterator[None]:
    running = asyncio.create_task(Keeper(desk, asyncio.Event()).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_answers_for_which_there_may_be_no_room_are_refused_before_anything_is_made(room: Room) -> None:
    key = await room.key()
    desk = replace(room.desk(words=PlainWords(answer_bytes=4000)), quota=Quota(10, 10_000))
    async with keeping(desk):
        first = await room.until(await room.batch(key, 2), BatchState.IN_PROGRESS)
        second = await room.until(await room.batch(key, 1), BatchState.FAILED)
        (fault,) = second.faults
        assert (fault.code, "response_format url" in fault.message) == ("output_too_large", True)
        assert "may take 0.0 MiB" in fault.message
        await room.make(2)
        await room.until(first, BatchState.COMPLETED)  # what it was promised and did not take is free again
        await room.until(await room.batch(key, 2), BatchState.IN_PROGRESS)


async def test_files_are_kept_up_to_a_number_and_a_size(room: Room) -> None:
    key = await room.key()

    async def upload(size: int, quota: Quota) -> StoredFile:
        name = room.file_id()
        file = StoredFile(name, key.id, PURPOSE_INPUT, "in", size, file_path(name), 0, room.clock.ms + HOUR_MS)
        return await room.store.batches.add_file(file, quota)

    first = await upload(60, Quota(2, 100))
    with pytest.raises(FilesFullError, match=r"has room for 0\.0 MiB more; delete some"):
        await upload(41, Quota(2, 100))
    await upload(40, Quota(2, 100))
    with pytest.raises(FilesFullError, match="keeps 2 files, and may keep 2; delete some"):
        await upload(0, Quota(2, 200))
    await room.store.batches.remove_file(key.id, first.id)
    await upload(60, Quota(2, 100))
    room.clock.advance(HOUR_MS)  # all have expired
    both = await asyncio.gather(*(upload(60, Quota(9, 100)) for _ in range(4)), return_exceptions=True)
    assert sorted(isinstance(one, FilesFullError) for one in both) == [False, True, True, True]


async def test_what_was_not_begun_in_the_window_has_expired_and_the_rest_is_kept(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk()):
        batch = await room.batch(key, 5)
        await room.waiting(5)
        await room.make(2)
        room.clock.advance(HOUR_MS + 1)
        assert len(await room.store.expire(10)) == 3
        batch = await room.until(batch, BatchState.EXPIRED)
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (5, 2, 3)
    assert [line["id"] for line in await room.lines(key, batch.output_file_id)] == ["line-0", "line-1"]
    assert len(await room.lines(key, batch.error_file_id)) == 3


async def test_a_batch_larger_than_its_keys_bound_waits_for_room_and_what_finds_none_expires(room: Room) -> None:
    key = await room.key(KeyLimits(waiting=4))
    async with keeping(room.desk()):
        batch = await room.batch(key, 10)
        await room.waiting(4)
        await room.make(3)
        await room.waiting(4)
        room.clock.advance(HOUR_MS + 1)
        await room.store.expire(10)
        batch = await room.until(batch, BatchState.EXPIRED)
    assert (batch.counts.completed, batch.counts.failed) == (3, 7)
    refused = [line["refused"] for line in await room.lines(key, batch.error_file_id)]
    assert refused == [None] * 4 + ["batch_expired"] * 3


async def test_a_batch_larger_than_the_pools_bound_waits_for_room(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk(bound=3)):
        batch = await room.batch(key, 7)
        for left in (3, 3, 1):
            await room.waiting(left)
            await room.make(left)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert batch.counts.completed == 7
    assert batch.error_file_id is None


async def test_a_dead_keepers_lease_runs_out_and_its_late_word_changes_nothing(room: Room) -> None:
    key = await room.key()
    batch = await room.batch(key, 3)
    lease = await room.store.batches.claim(1000)
    assert lease is not None
    assert await room.store.batches.claim(1000) is None
    room.clock.advance(1001)
    async with keeping(room.desk()):
        await room.waiting(3)
        with pytest.raises(LeaseLostError):
            await room.store.batches.validated(lease, 99, 0, Quota())
        await room.make(3)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert batch.counts.total == 3


async def test_jobs_of_an_open_batch_are_not_forgotten_and_what_is_over_is(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk()):
        batch = await room.batch(key, 2)
        await room.waiting(2)
        await room.make(1)
        room.clock.advance(1000)
        assert await room.store.forget_jobs(10, 10) == 0
        await room.make(1)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert await room.store.forget_jobs(0, 10) == 2
    room.clock.advance(HOUR_MS + 1)
    (path,) = await room.store.batches.forget(None, 100)
    assert path.endswith(f"{batch.output_file_id}.jsonl")
    await room.store.batches.forget(0, 100)
    assert await room.store.batches.batch(key.id, batch.id) is None


async def test_an_input_that_expires_while_it_is_read_is_read_to_its_end(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk(bound=3)):
        batch = await room.batch(key, 5, expires_ms=1000)
        await room.waiting(3)
        room.clock.advance(1000)
        await room.make(3)
        await room.waiting(2)
        await room.make(2)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert batch.counts.completed == 5


async def test_an_input_that_is_lost_half_way_refuses_the_lines_that_were_not_read(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk(bound=3)):
        batch = await room.batch(key, 7)
        await room.waiting(3)
        await room.artifacts.remove([file_path(batch.input_file_id)])
        await room.make(3)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (7, 3, 4)
    errors = await room.lines(key, batch.error_file_id)
    assert [line["refused"] for line in errors] == ["invalid_input_file"] * 4


async def test_a_batch_whose_input_is_lost_before_it_is_read_has_failed(room: Room) -> None:
    key = await room.key()
    batch = await room.batch(key, 3)
    await room.artifacts.remove([file_path(batch.input_file_id)])
    async with keeping(room.desk()):
        batch = await room.until(batch, BatchState.FAILED)
    assert [fault.code for fault in batch.faults] == ["invalid_input_file"]


async def test_a_batch_whose_input_is_lost_can_be_cancelled(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk(bound=3)):
        batch = await room.batch(key, 7)
        await room.waiting(3)
        await room.artifacts.remove([file_path(batch.input_file_id)])
        await room.store.batches.ask_to_cancel(key.id, batch.id)
        batch = await room.until(batch, BatchState.CANCELLED)
    assert (batch.counts.completed, batch.counts.failed) == (0, 7)


@pytest.mark.parametrize("reads_again", [False, True])
async def test_a_line_whose_image_cannot_be_read_is_an_error_and_the_others_are_kept(
    room: Room, *, reads_again: bool
) -> None:
    """What may pass is tried until the window ends, what is gone is not."""
    key = await room.key()
    error = ArtifactError("it was slow") if reads_again else ArtifactGoneError("it is gone")
    async with keeping(room.desk(words=PlainWords({2: error}))):
        batch = await room.batch(key, 3)
        await room.waiting(3)
        await room.make(3)
        if reads_again:
            await room.until(batch, BatchState.FINALIZING)
            room.clock.advance(HOUR_MS)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert (batch.counts.completed, batch.counts.failed) == (2, 1)
    assert [line["id"] for line in await room.lines(key, batch.output_file_id)] == ["line-0", "line-2"]
    assert [line["refused"] for line in await room.lines(key, batch.error_file_id)] == ["image_lost"]


async def test_a_batch_that_found_no_room_at_all_in_its_window_has_expired_and_its_owner_is_told(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk(bound=0)):
        batch = await room.batch(key, 3, webhook="https://example.com/hook")
        await room.until(batch, BatchState.IN_PROGRESS)
        room.clock.advance(HOUR_MS + 1)
        batch = await room.until(batch, BatchState.EXPIRED)
    assert (batch.counts.completed, batch.counts.failed) == (0, 3)
    assert [line["refused"] for line in await room.lines(key, batch.error_file_id)] == ["batch_expired"] * 3
    (told,) = await room.store.outbox.deliveries(None, 10)
    assert (told.event, told.subject, told.url) == ("batch.expired", batch.id, "https://example.com/hook")


async def test_a_revoked_keys_batches_are_cancelled_and_what_was_made_is_kept(room: Room) -> None:
    key = await room.key()
    async with keeping(room.desk(bound=4)):
        batch = await room.batch(key, 10)
        await room.waiting(4)
        await room.make(1)
        await room.store.revoke_api_key("k")
        batch = await room.until(batch, BatchState.CANCELLED)
        assert await room.store.queued(POOL) == 0
        late = await room.until(await room.batch(key, 2), BatchState.CANCELLED)
    assert (batch.counts.completed, batch.counts.failed) == (1, 9)
    assert [line["made"] for line in await room.lines(key, batch.output_file_id)] == [True]
    assert late.output_file_id is None


@dataclass(frozen=True)
class CancellingWords(PlainWords):
    """Somebody asks to cancel while the answers are written."""

    ask: Callable[[Batch], Awaitable[object]] = field(kw_only=True)

    async def render(self, batch: Batch, line: DoneLine) -> AsyncIterator[bytes]:
        await self.ask(batch)
        async for piece in super().render(batch, line):
            yield piece


async def test_a_batch_that_is_finalizing_can_be_cancelled_and_keeps_all_that_was_made(room: Room) -> None:
    key, seen = await room.key(), list[BatchState]()

    async def ask(batch: Batch) -> None:
        seen.append((await room.now(batch)).state)
        await room.store.batches.ask_to_cancel(key.id, batch.id)

    async with keeping(room.desk(words=CancellingWords(ask=ask))):
        batch = await room.batch(key, 2, webhook="https://example.com/hook")
        await room.waiting(2)
        await room.make(2)
        batch = await room.until(batch, BatchState.CANCELLED)
    assert seen == [BatchState.FINALIZING, BatchState.CANCELLING]
    assert (batch.counts.completed, batch.counts.failed) == (2, 0)
    assert batch.at.cancelling
    assert len(await room.lines(key, batch.output_file_id)) == 2
    assert [told.event for told in await room.store.outbox.deliveries(None, 10)] == ["batch.cancelled"]


@pytest.mark.parametrize(
    ("jobs", "room", "fitting"),
    [([1, 1, 1], 2, 2), ([1, 1, 1], 0, 0), ([2, 2, 1], 3, 1), ([3], 5, 0), ([0, 0, 4], 1, 2), ([1, 1], 9, 1)],
)
def test_as_many_lines_are_tried_as_there_is_room_for_and_fewer_than_before(
    jobs: Sequence[int], room: int, fitting: int
) -> None:
    new = NewJob(request())
    assert fitting_of([NewLine(n, "", [new] * count) for n, count in enumerate(jobs)], room) == fitting


async def test_a_batch_that_was_told_to_be_cancelled_does_not_fail_any_more(room: Room) -> None:
    key = await room.key()
    batch = await room.batch(key, 1)
    lease = await room.store.batches.claim(60_000)
    assert lease
    await room.store.batches.ask_to_cancel(key.id, batch.id)
    await room.store.batches.fail(lease, [Fault("output_too_large", "too large")])
    assert (await room.now(batch)).state is BatchState.CANCELLED


async def test_a_cancel_is_seen_while_the_file_is_read(room: Room) -> None:
    key = await room.key()
    announced, cancelling = list[int](), list[asyncio.Task[Batch | None]]()

    def announce(_pool: str, jobs: int) -> None:
        announced.append(jobs)
        if len(announced) == 1:
            cancelling.append(asyncio.create_task(room.store.batches.ask_to_cancel(key.id, batch.id)))

    lines = 6 * LOAD_AT_ONCE
    batch = await room.batch(key, lines)
    async with keeping(replace(room.desk(bound=lines), announce=announce)):
        batch = await room.until(batch, BatchState.CANCELLED)
    assert sum(announced) < lines
    assert (batch.counts.total, batch.counts.failed) == (lines, lines)
