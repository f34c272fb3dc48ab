"""Keepers on real stores: what expires, what is lost, what is cancelled, and what a dead one leaves to the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from router.artifacts import file_path
from router.batches import Batch, BatchState, DoneLine, Fault, Quota
from router.batches.keeper import LOAD_AT_ONCE
from router.errors import ArtifactError, ArtifactGoneError, LeaseLostError
from tests.integration.router.keeper_rig import HOUR_MS, POOL, PlainWords, Room, keeping, room_at


@pytest.fixture
async def room(database_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    async with room_at(database_url, tmp_path) as made:
        yield made


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
