"""Keepers on real stores: room for a batch's jobs in the queue, and for its answers among its key's files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from router.artifacts import file_path
from router.batches import PURPOSE_INPUT, BatchState, NewLine, Quota, StoredFile
from router.batches.keeper import fitting_of
from router.batches.output import STEP
from router.errors import FilesFullError, OutputTooLargeError
from router.jobs import NewJob
from router.limits import KeyLimits
from tests.integration.router.keeper_rig import HOUR_MS, PlainWords, Room, keeping, room_at
from tests.stores import request


@pytest.fixture
async def room(database_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    async with room_at(database_url, tmp_path) as made:
        yield made


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


async def test_answers_larger_than_foreseen_take_what_room_there_is_and_no_more(room: Room) -> None:
    key = await room.key()
    desk = replace(room.desk(words=PlainWords(written_bytes=4000)), quota=Quota(10, 10_000))
    async with keeping(desk):
        batch = await room.batch(key, 3)
        await room.waiting(3)
        await room.make(3)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert (batch.counts.completed, batch.counts.failed) == (2, 1)
    assert [line["id"] for line in await room.lines(key, batch.output_file_id)] == ["line-0", "line-1"]
    assert [line["refused"] for line in await room.lines(key, batch.error_file_id)] == ["output_too_large"]
    kept = await room.store.batches.kept(key.id)
    assert 8000 < kept.bytes <= 10_000
    assert kept.promised == 0


async def test_an_answer_larger_than_foreseen_takes_no_room_of_those_behind_it(room: Room) -> None:
    key = await room.key()
    words = PlainWords(answer_bytes=1000, written_bytes=1000, large=frozenset({"line-0"}))
    async with keeping(replace(room.desk(words=words), quota=Quota(10, 11_000))):
        batch = await room.batch(key, 4)
        await room.waiting(4)
        await room.make(4)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert [line["id"] for line in await room.lines(key, batch.output_file_id)] == ["line-1", "line-2", "line-3"]
    assert [line["refused"] for line in await room.lines(key, batch.error_file_id)] == ["output_too_large"]


async def test_what_is_larger_than_foreseen_is_promised_once_for_many_where_there_is_room(room: Room) -> None:
    key, batches = await room.key(), room.store.batches
    async with keeping(room.desk(words=PlainWords(written_bytes=4000))):
        batch = await room.batch(key, 3)
        await room.waiting(3)
        await room.make(3)
        batch = await room.until(batch, BatchState.COMPLETED)
    assert batch.promised == 4000 + 2 * 100 + STEP, "of the first line, and of no other"
    assert (await batches.kept(key.id)).promised == 0


async def test_what_a_batch_writes_beyond_its_promise_is_no_ones_else_meanwhile(room: Room) -> None:
    key, quota = await room.key(), Quota(10, 10_000)
    await room.batch(key, 2)
    lease = await room.store.batches.claim(60_000)
    assert lease is not None
    await room.store.batches.validated(lease, 2, 200, quota)
    await room.store.batches.promise(lease, 9000, quota)
    await room.store.batches.promise(lease, 9100, quota)  # its own promise is in nobody's way
    with pytest.raises(OutputTooLargeError):
        await room.store.batches.promise(lease, 10_000, quota)
    assert (await room.store.batches.kept(key.id)).promised == 9100


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


@pytest.mark.parametrize(
    ("jobs", "room", "fitting"),
    [([1, 1, 1], 2, 2), ([1, 1, 1], 0, 0), ([2, 2, 1], 3, 1), ([3], 5, 0), ([0, 0, 4], 1, 2), ([1, 1], 9, 1)],
)
def test_as_many_lines_are_tried_as_there_is_room_for_and_fewer_than_before(
    jobs: Sequence[int], room: int, fitting: int
) -> None:
    new = NewJob(request())
    assert fitting_of([NewLine(n, "", [new] * count) for n, count in enumerate(jobs)], room) == fitting
