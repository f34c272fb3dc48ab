"""Lines of a batch that no worker can make: when they are given up, and that the batch is done with the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from router.admission import Admission, Bounds
from router.batches import Batch, BatchState, NewLine
from router.choice import Capability
from router.contract import JobState
from router.errors import UnmakeableError
from router.fleet.seen import SeenFleet
from router.jobs import NewJob
from router.notices import Notices
from router.outlook import Outlooks
from router.paces import Paces
from router.spill import SpillRule
from router.store import ApiKey, JobFilter
from router.unmade import HELD_S, Unmade
from tests.integration.router.keeper_rig import POOL, PlainWords, Room, keeping, room_at
from tests.stores import request
from worker.contract import GenerationRequest

SMALL, LARGE = Capability("exact", "paced", 1024 * 1024), Capability("exact", "paced", 2048 * 2048)
WIDE = request().model_copy(update={"width": 2048, "height": 2048})
BORDER = Capability("exact", "paced", 1_000_000)
"""It makes some of the images between 3 and 4 times 512x512, and not all of them."""
WITHIN = request().model_copy(update={"width": 992, "height": 1008})
BEYOND = request().model_copy(update={"width": 1024, "height": 1024})
HELP = SpillRule(giver="interactive", taker=POOL, longest_s=60)


@dataclass(frozen=True)
class OfSizes(PlainWords):
    """The lines are of images of these sizes, in their order; unless told otherwise the second is too large for a small
    worker."""

    sizes: Sequence[GenerationRequest] = (request(), WIDE)

    async def read(self, batch: Batch, number: int, line: bytes) -> NewLine:
        asked = await super().read(batch, number, line)
        return replace(asked, wanted=[replace(new, request=self.sizes[number - 1]) for new in asked.wanted])


@dataclass
class Pools:
    room: Room
    fleet: SeenFleet
    key: ApiKey
    now: float = 0.0

    def unmade(self, *rules: SpillRule) -> Unmade:
        return Unmade(self.room.store, self.fleet, rules, Notices(), lambda: self.now)

    async def worker(self, name: str, able: Capability | None, pool: str = POOL) -> None:
        await self.room.store.put_worker(name, "http://127.0.0.1:1", "t" * 16, pool)
        if able is not None:
            await self.room.store.describe_worker(name, able)
        await self.fleet.look()

    async def hold(self, unmade: Unmade, for_s: float = HELD_S) -> Sequence[JobState]:
        """What has become of the batch's two jobs after so long, in the order of their lines."""
        await unmade.look()
        self.now += for_s
        await unmade.look()
        jobs = await self.room.store.listed(self.key.id, JobFilter(), None, 10)
        return [job.state for job in reversed(jobs) if job.place is not None]


@pytest.fixture
async def pools(database_url: str, tmp_path: Path) -> AsyncIterator[Pools]:
    async with room_at(database_url, tmp_path) as room:
        made = Pools(room, SeenFleet(room.store, lambda: datetime.now(UTC)), await room.key())
        await made.worker("a", SMALL)
        yield made


@asynccontextmanager
async def loaded(pools: Pools, beside: int = 0, words: OfSizes | None = None) -> AsyncIterator[Batch]:
    """A batch of two lines whose jobs wait, `beside` so many others."""
    async with keeping(pools.room.desk(words=words or OfSizes())):
        batch = await pools.room.batch(pools.key, 2)
        await pools.room.waiting(2 + beside)
        yield batch


async def test_a_line_that_no_worker_can_make_is_an_error_and_its_batch_ends_with_the_others(pools: Pools) -> None:
    (alone,) = await pools.room.store.add_jobs(pools.key.id, POOL, [NewJob(WIDE)])
    async with loaded(pools, beside=1) as batch:
        assert await pools.hold(pools.unmade()) == [JobState.QUEUED, JobState.FAILED]
        await pools.room.make(1)
        ended = await pools.room.until(batch, BatchState.COMPLETED)
    assert (ended.counts.completed, ended.counts.failed) == (1, 1)
    (line,) = await pools.room.lines(pools.key, ended.error_file_id)
    assert line["id"] == "line-1"
    by_itself = await pools.room.store.job(alone.id)
    assert by_itself is not None
    assert by_itself.state is JobState.QUEUED, "its owner may cancel it, and has set no end to it"


async def test_a_line_waits_as_long_as_a_machine_may_be_away(pools: Pools) -> None:
    async with loaded(pools):
        unmade = pools.unmade()
        assert await pools.hold(unmade, HELD_S - 1) == [JobState.QUEUED] * 2
        await pools.worker("b", LARGE)
        await unmade.look()
        await pools.room.store.remove_worker("b")
        await pools.fleet.look()
        assert await pools.hold(unmade, HELD_S - 1) == [JobState.QUEUED] * 2, "the time begins anew"
        pools.now += 1
        assert JobState.FAILED in await pools.hold(unmade, 0)


@pytest.mark.parametrize("may", ["a new worker", "expected", "another pool helps", "another pool has a silent one"])
async def test_a_line_waits_while_somebody_may_make_it(pools: Pools, may: str) -> None:
    async with loaded(pools):
        rules: list[SpillRule] = []
        match may:
            case "a new worker":
                await pools.worker("b", None)
            case "expected":
                await pools.room.store.expect_pool(POOL, 3_600_000)
            case "another pool helps":
                await pools.worker("i", LARGE, HELP.giver)
                rules.append(HELP)
            case _:
                await pools.worker("i", None, HELP.giver)
                rules.append(HELP)
        assert await pools.hold(pools.unmade(*rules)) == [JobState.QUEUED] * 2


async def test_a_pool_that_does_not_help_out_or_cannot_is_not_waited_for(pools: Pools) -> None:
    await pools.worker("i", SMALL, HELP.giver)
    await pools.worker("o", LARGE, "other")
    async with loaded(pools):
        assert await pools.hold(pools.unmade(HELP)) == [JobState.QUEUED, JobState.FAILED]


async def test_of_sizes_that_share_a_lane_only_those_wait_that_somebody_can_make(pools: Pools) -> None:
    await pools.worker("b", BORDER)
    async with loaded(pools, words=OfSizes(sizes=(WITHIN, BEYOND))):
        await pools.room.store.remove_worker("a")
        await pools.fleet.look()
        assert await pools.hold(pools.unmade()) == [JobState.QUEUED, JobState.FAILED]


async def test_a_size_that_could_be_made_a_moment_ago_waits_as_long_as_any(pools: Pools) -> None:
    """Though its lane has held for long what nobody could make."""
    await pools.worker("a", replace(BORDER, max_pixels=800_000))
    await pools.worker("b", BORDER)
    async with loaded(pools, words=OfSizes(sizes=(WITHIN, BEYOND))):
        unmade = pools.unmade()
        assert await pools.hold(unmade, HELD_S) == [JobState.QUEUED, JobState.FAILED]
        await pools.room.store.remove_worker("b")
        await pools.fleet.look()
        assert await pools.hold(unmade, HELD_S - 1) == [JobState.QUEUED, JobState.FAILED]
        pools.now += 1
        assert await pools.hold(unmade, 0) == [JobState.FAILED, JobState.FAILED]


async def test_a_size_beyond_what_workers_make_is_refused_though_its_class_is_made(pools: Pools) -> None:
    store, still = pools.room.store, lambda: 0.0
    outlooks = Outlooks(store, Paces(store, still), pools.fleet.ready_workers, still)
    admission = Admission(store, pools.fleet, outlooks, Bounds())

    async def asked(*wanted: GenerationRequest) -> int:
        admitted = await admission.admit(pools.key, POOL, [NewJob(one) for one in wanted], None, lambda: None, None)
        return len(admitted.job_ids)

    await pools.worker("a", BORDER)
    assert await asked(WITHIN) == 1
    with pytest.raises(UnmakeableError, match="1024x1024"):
        await asked(WITHIN, BEYOND)
