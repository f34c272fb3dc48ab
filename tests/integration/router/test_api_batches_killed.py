"""A batch whose router is killed in each of its states, and at random moments between: nothing lost, nothing twice."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai.types import Batch

from router.contract import KeyLimitsView, KeyRequest
from tests.drawing import drawn
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.openai_batches import QUICK, client_of, ended, jobs_of, line, lines_in, made, spelled
from tests.integration.router.served import ServedRouter, served_router, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAITING = 40
"""Jobs of the key that may wait: while the first images are made, most lines are no jobs yet."""
LEASE_TTL_S = "600"
"""Longer than a router takes to come back: what is swept meanwhile may be drawn twice, as for a lost worker."""


@dataclass
class Rows:
    """What the database says of the batch, whether its router lives or not."""

    router: ServedRouter
    batch: Batch

    def state(self) -> tuple[str, bool]:
        """And whether all lines are jobs."""
        ((state, loaded),) = self._read("select state, loaded from batches where id = ?")
        return str(state), bool(loaded)

    def jobs(self) -> int:
        ((count,),) = self._read("select count(*) from jobs where batch_id = ?")
        return int(str(count))

    def images(self) -> list[Path]:
        """Those that are made, in the order in which they will be written."""
        found = self._read("select image_path from jobs where batch_id = ? and image_path not null order by batch_line")
        return [self.router.folder / "data/artifacts" / str(path) for (path,) in found]

    def _read(self, statement: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(f"file:{self.router.folder / 'data/router.db'}?mode=ro", uri=True)) as database:
            return database.execute(statement, [self.batch.id]).fetchall()


@contextmanager
def piped(image: Path) -> Iterator[None]:
    """A pipe is in the image's place."""
    kept = image.rename(image.with_suffix(".kept"))
    os.mkfifo(image)
    try:
        yield
    finally:
        kept.replace(image)


@asynccontextmanager
async def started_and_held_at(router: ServedRouter, image: Path) -> AsyncIterator[None]:
    """Entered when the router has begun to read the image, and comes no further: it is a pipe that says nothing."""
    ends = list[int]()

    async def read() -> bool:
        try:
            ends.append(os.open(image, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody has it open to read
                raise
        return bool(ends)

    with piped(image):
        await router.start()
        await until(read, f"{image.name} is read", within_s=600)
        yield
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(("lines", "kills"), [(200, 3), pytest.param(2000, 10, marks=pytest.mark.soak)])
async def test_a_batch_whose_router_is_killed_in_each_of_its_states_is_made_once(
    worker: PacedProcess, lines: int, kills: int
) -> None:
    draw = drawn()
    await worker.pace(QUICK)
    wanted = {str(n): 1 + n % 2 for n in range(lines)}
    images = sum(wanted.values())
    async with served_router(LEASE_TTL_S=LEASE_TTL_S) as router:
        await router.use("b-1", worker, "batch")
        async with router.admin() as admin:
            owner = await admin.create_key(KeyRequest(name="owner", limits=KeyLimitsView(waiting=WAITING)))
        async with client_of(router, owner.key) as client:
            batch = await made(client, spelled(line(name, n=count) for name, count in wanted.items()))
        rows = Rows(router, batch)

        async def some_are_jobs() -> bool:
            return rows.jobs() > 0

        async def so_many_drawn() -> bool:
            return len(set((await worker.ledger()).finished)) >= drawn_by_then

        await until(some_are_jobs, "some lines are jobs")
        await router.stop(signal.SIGKILL)
        assert rows.state() == ("in_progress", False), "killed while its lines became jobs"
        for drawn_by_then in sorted(draw.sample(range(WAITING, images), kills - 2)):
            await router.start()
            await until(so_many_drawn, f"{drawn_by_then} images are drawn", within_s=600)
            await router.stop(signal.SIGKILL)
            assert rows.state()[0] == "in_progress", "killed between two of its images"
        there = rows.images()
        async with started_and_held_at(router, there[len(there) // 2]):
            await router.stop(signal.SIGKILL)
            assert rows.state() == ("finalizing", True), "killed while its files were written"
        await router.start()
        async with client_of(router, owner.key) as again:
            batch = await ended(again, batch)
            assert batch.status == "completed"
            output = await lines_in(again, batch.output_file_id)
        jobs = await jobs_of(router, batch, owner.key)
    assert list(output) == list(wanted)
    assert {name: len(one["response"]["body"]["data"]) for name, one in output.items()} == wanted
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert len(jobs) == images
    # What the worker itself says that it drew: each job once, whichever router asked.
    assert sorted(name.partition(".")[0] for name in (await worker.ledger()).finished) == sorted(
        job["id"] for job in jobs
    )
