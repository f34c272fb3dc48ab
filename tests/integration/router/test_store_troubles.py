"""What a database in trouble says, and that nothing which was promised is lost by it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from router.contract import JobState
from router.errors import StoreUnavailableError
from router.store import ROUTER, ApiKey
from router.store.clock import database_clock
from router.store.sql import SqlStore
from tests.integration.router.core_rig import eventually
from tests.postgres import Postgres, postgres
from tests.small_disk import small_disk
from tests.stores import IMAGE, NO_TIME, opened_at, opened_store, request, url

TTL_MS = 60_000
POOL = "interactive"


async def made_key(store: SqlStore) -> ApiKey:
    await store.put_worker("a", "http://127.0.0.1:1", "t" * 16, POOL)
    return await store.put_api_key("default", "0" * 64)


@pytest.fixture
def mortal() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own, to be killed; it syncs as in earnest."""
    with postgres() as server:
        server.sql("CREATE DATABASE letterpress")
        yield server


@pytest.fixture
async def on_mortal(mortal: Postgres) -> AsyncIterator[SqlStore]:
    async with opened_at(mortal.url("letterpress"), database_clock) as store:
        yield store


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL], ids=lambda by: by.name)
async def test_a_restart_of_the_database_is_an_error_while_it_lasts_and_loses_nothing(
    mortal: Postgres, on_mortal: SqlStore, by: signal.Signals
) -> None:
    key = await made_key(on_mortal)
    jobs = [await on_mortal.add_job(key.id, POOL, request(seed=seed)) for seed in range(5)]
    lease = await on_mortal.lease_next("a", TTL_MS)
    assert lease is not None
    mortal.stop(by)
    with pytest.raises(StoreUnavailableError, match=f"the database letterpress at {mortal.folder} did not do as asked"):
        await on_mortal.add_job(key.id, POOL, request())
    mortal.start()
    assert [await on_mortal.job(job.id) for job in jobs[1:]] == jobs[1:]
    finished = await on_mortal.finish(lease, IMAGE, NO_TIME)
    assert finished is not None
    assert finished.state is JobState.SUCCEEDED


async def test_connections_that_are_cut_in_mid_flight_are_errors_by_name_and_no_job_is_leased_twice(
    mortal: Postgres, on_mortal: SqlStore
) -> None:
    key = await made_key(on_mortal)
    for seed in range(200):
        await on_mortal.add_job(key.id, POOL, request(seed=seed))
    got: list[str] = []

    async def consume() -> None:
        while True:
            try:
                lease = await on_mortal.lease_next("a", TTL_MS)
            except StoreUnavailableError:
                continue
            if lease is None:
                return
            got.append(lease.job_id)

    async def cut() -> None:
        for _ in range(5):
            await asyncio.to_thread(
                mortal.sql, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'letterpress'"
            )

    await asyncio.gather(cut(), *(consume() for _ in range(4)))
    assert len(got) == len(set(got))
    # A lease whose commit was not heard of is nobody's, and runs out: its job is never lost.
    assert len(got) <= len(await on_mortal.take_up(ROUTER, TTL_MS)) == 200


async def test_a_postgres_that_is_not_there_says_where_it_was_looked_for() -> None:
    with pytest.raises(StoreUnavailableError, match="the database letterpress at /nowhere did not do as asked"):
        await SqlStore.open("postgresql+asyncpg://someone:secret@/letterpress?host=/nowhere")


async def test_two_routers_that_start_together_migrate_once(postgres_server: Postgres) -> None:
    empty = postgres_server.create()
    stores = await asyncio.gather(*(SqlStore.open(empty) for _ in range(3)))
    for store in stores:
        await store.ping()
        await store.close()


async def test_a_database_that_may_only_be_read_says_so(postgres_server: Postgres, postgres_url: str) -> None:
    async with opened_at(postgres_url, database_clock) as store:
        key = await made_key(store)
    name = postgres_url.partition("@/")[2].partition("?")[0]
    postgres_server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with opened_at(postgres_url, database_clock) as store:
        with pytest.raises(StoreUnavailableError, match="read-only transaction"):
            await store.add_job(key.id, POOL, request())


async def test_a_file_on_a_disk_that_may_only_be_read_says_so() -> None:
    with small_disk("8m") as disk:
        async with opened_store(disk.folder, database_clock) as store:
            await made_key(store)
        disk.read_only()
        with pytest.raises(StoreUnavailableError, match=r"(?i)read-only"):
            await SqlStore.open(url(disk.folder))


async def test_a_full_disk_is_an_error_and_what_was_promised_stays() -> None:
    with small_disk("8m") as disk:
        async with opened_store(disk.folder, database_clock) as store:
            key = await made_key(store)
            kept = await store.add_job(key.id, POOL, request())
            ballast = disk.fill()
            with pytest.raises(StoreUnavailableError, match=r"disk is full|disk I/O error"):
                await asyncio.gather(*(store.add_job(key.id, POOL, request(seed=seed)) for seed in range(200)))
            assert await store.job(kept.id) == kept
            ballast.unlink()

            async def takes_jobs_again() -> bool:
                try:
                    return bool(await store.add_job(key.id, POOL, request()))
                except StoreUnavailableError:
                    return False

            await eventually(takes_jobs_again, "the disk has room, and the store takes jobs again")


async def test_only_its_owner_may_read_the_database(tmp_path: Path) -> None:
    async with opened_store(tmp_path, database_clock):
        made = [tmp_path / f"router.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
        assert [oct(os.stat(path).st_mode & 0o777) for path in made] == ["0o600"] * 3  # noqa: PTH116


async def test_a_database_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be made"):
        await SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/missing/router.sqlite")


async def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "router.sqlite").write_bytes(b"this is not SQLite at all" * 100)
    with pytest.raises(StoreUnavailableError, match=r"router\.sqlite.*not a database"):
        await SqlStore.open(url(tmp_path))


@pytest.mark.parametrize(
    "bad", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "mysql+aiomysql://u@h/db", "what is this"]
)
async def test_a_url_that_keeps_nothing_is_refused(bad: str) -> None:
    with pytest.raises(StoreUnavailableError):
        await SqlStore.open(bad)
