"""What the store costs, as figures and ratios of one run: `python -m tests.load.store_bench`.

On SQLite and on a PostgreSQL of its own, both as in earnest (every commit is on the disk before it is answered):

    choice     leasing the next job with 50 keys that wait, alone and beside one key's 50,000 jobs; without the commit
    creation   single jobs a second, one after another and sixteen at once, beside a bare insert of the same row
    batch      50,000 jobs in one request to a real router process: seconds, and its memory
    file       50,000 lines uploaded and made an OpenAI batch: seconds until all wait, and the router's memory
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy import Connection, insert, text

from router.contract import JobRequest
from router.jobs import Lease, NewJob
from router.limits import KeyLimits
from router.store import ApiKey, choice_rows
from router.store.clock import database_clock
from router.store.sql import SqlStore
from router.store.tables import jobs
from tests.emulators.pace import Pace
from tests.emulators.paced_process import paced_worker
from tests.integration.router.served import served_router, until
from tests.postgres import Postgres, postgres
from tests.stores import opened_at, request, url
from worker.contract import WorkerState

POOL = "batch"
IMAGES = "/v1/images/generations"
MANY = 50_000
KEYS = 50
LEASES = 100
WARM_UP = 20
CREATIONS = 50
ROUNDS = 6
AT_ONCE = 16
TTL_MS = 600_000
PROMPT = "a letterpress print shop at night, a long row of type cases, one lamp, ink on the floor, " * 3


@contextmanager
def databases() -> Iterator[list[tuple[str, Callable[[], str]]]]:
    """Each kind by its name, and what makes a new one of it."""
    with tempfile.TemporaryDirectory(prefix="lp-bench-") as folder, postgres() as server:
        yield [("SQLite", lambda: url(Path(tempfile.mkdtemp(dir=folder)))), ("PostgreSQL", lambda: _new(server))]


def _new(server: Postgres) -> str:
    return server.create()


@asynccontextmanager
async def prepared(database_url: str, keys: int) -> AsyncIterator[tuple[SqlStore, list[ApiKey]]]:
    async with opened_at(database_url, database_clock) as store:
        await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
        made = [await store.create_api_key(f"key-{n}", f"{n:064x}", KeyLimits()) for n in range(keys)]
        yield store, [record.key for record in made]


async def choice(new: Callable[[], str]) -> tuple[float, float]:
    """Milliseconds a lease: without and with the large key."""
    found = []
    for large in (False, True):
        async with prepared(new(), KEYS + 1) as (store, keys):
            for key in keys[:KEYS]:
                await store.add_jobs(
                    key.id, POOL, [NewJob(request(seed=seed)) for seed in range((WARM_UP + LEASES) // KEYS + 2)]
                )
            if large:
                await store.add_jobs(keys[KEYS].id, POOL, [NewJob(request(seed=seed)) for seed in range(MANY)])
            found.append(await store._database.write(_leases) * 1000)
    return found[0], found[1]


def _inserted(connection: Connection, row: dict[str, object]) -> None:
    connection.execute(insert(jobs), [row])


def _leases(connection: Connection) -> float:
    """Seconds of the least disturbed one. In one transaction: a commit's cost is the disk's, whatever waits."""
    took = []
    for _ in range(WARM_UP + LEASES):
        begun = time.perf_counter()
        lease = choice_rows.lease_next(connection, database_clock(), "a", TTL_MS, None, (), "")
        took.append(time.perf_counter() - begun)
        assert isinstance(lease, Lease)
    return min(took[WARM_UP:])


async def creation(new: Callable[[], str]) -> dict[str, float]:
    """Jobs a second."""
    async with prepared(new(), 1) as (store, (key,)):

        async def bare() -> None:
            bare.number += 1  # type: ignore[attr-defined]
            row = {**template, "id": f"job_{bare.number:026}"}  # type: ignore[attr-defined]
            await store._database.write(_inserted, row)

        async def ours() -> None:
            await store.admit(key, POOL, [NewJob(request(prompt=PROMPT))], 10**6)

        await ours()
        template = await store._database.read(
            lambda connection: dict(connection.execute(text("SELECT * FROM jobs")).mappings().one())
        )
        bare.number = 0  # type: ignore[attr-defined]
        seconds: defaultdict[str, float] = defaultdict(float)
        for _ in range(ROUNDS):  # by turns, so that what else the machine does meets both
            for at_once, told in ((1, ""), (AT_ONCE, f", {AT_ONCE} at once")):
                seconds[f"bare{told}"] += await _seconds(bare, at_once)
                seconds[f"ours{told}"] += await _seconds(ours, at_once)
        return {name: ROUNDS * CREATIONS / taken for name, taken in seconds.items()}


async def _seconds(doing: Callable[[], Awaitable[None]], at_once: int) -> float:
    left = CREATIONS

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await doing()

    begun = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(at_once)))
    return time.perf_counter() - begun


async def batch(database_url: str) -> tuple[float, float]:
    """Seconds until 50,000 jobs were accepted, and the router's largest memory in MB."""
    wanted = [JobRequest(prompt=f"{n} {PROMPT}", pool=POOL, seed=n) for n in range(MANY)]
    async with (
        paced_worker(Pace(state=WorkerState.LOADING)) as worker,
        served_router(DATABASE_URL=database_url) as router,
    ):
        async with router.admin() as admin:
            await admin.expect(POOL, 600)
        async with router.client() as client:
            begun = time.perf_counter()
            ids = await client.submit_batch(wanted)
            took = time.perf_counter() - begun
        assert len(set(ids)) == MANY
        assert router.process is not None
        assert worker.url
        status = await asyncio.to_thread(Path(f"/proc/{router.process.pid}/status").read_text)
        peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    return took, peak_kb / 1024


async def batch_file(database_url: str) -> tuple[float, float]:
    """Seconds from the upload until 50,000 jobs wait, and the router's largest memory in MB."""
    body = {"prompt": PROMPT, "response_format": "url"}
    lines = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": IMAGES, "body": {**body, "seed": n}})
        for n in range(MANY)
    ]
    async with served_router(DATABASE_URL=database_url) as router, router.admin() as admin:
        await admin.expect(POOL, 600)
        async with router.http(timeout_s=120) as http:
            begun = time.perf_counter()
            content = "\n".join(lines).encode()
            sent = await http.post("/v1/files", files={"file": content}, data={"purpose": "batch"})
            file = sent.raise_for_status().json()
            asked = {"input_file_id": file["id"], "endpoint": IMAGES, "completion_window": "24h"}
            (await http.post("/v1/batches", json=asked)).raise_for_status()

            async def waits() -> bool:
                return sum(pool.queued for pool in await admin.pools()) == MANY

            await until(waits, "all jobs wait")
            took = time.perf_counter() - begun
        assert router.process is not None
        status = await asyncio.to_thread(Path(f"/proc/{router.process.pid}/status").read_text)
        return took, int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def main() -> None:
    with databases() as kinds:
        for name, new in kinds:
            alone, beside = await choice(new)
            print(
                f"{name}: choice with {KEYS} keys {alone:.1f} ms, beside {MANY:,} jobs of one more {beside:.1f} ms "
                f"(x{beside / alone:.2f})"
            )
            rates = await creation(new)
            for at_once in ("", f", {AT_ONCE} at once"):
                ours, bare = rates[f"ours{at_once}"], rates[f"bare{at_once}"]
                print(
                    f"{name}: single creations{at_once} {ours:.0f} a second, bare insert {bare:.0f} ({ours / bare:.0%})"
                )
            took, peak = await batch(new())
            print(f"{name}: {MANY:,} jobs accepted in one batch in {took:.1f} s, router's peak memory {peak:.0f} MB")
            took, peak = await batch_file(new())
            print(f"{name}: a file of {MANY:,} lines, all waiting in {took:.1f} s, router's peak memory {peak:.0f} MB")


if __name__ == "__main__":
    asyncio.run(main())
