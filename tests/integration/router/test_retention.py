"""What is old goes, rows before images, and nothing that a job names or that is young."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from router.artifacts.local import LocalArtifacts
from router.artifacts.s3 import Bucket, S3Artifacts
from router.contract import JobState
from router.db import BackupError, backup, upgrade
from router.jobs import Image, NewJob
from router.limits import KeyLimits
from router.retention import collect, forget
from router.store import Repeatable
from router.store.clock import database_clock
from router.store.sql import SqlStore
from tests.emulators.s3 import REGION, emulated_s3, write_credentials
from tests.integration.router.served import ROOT
from tests.stores import NO_TIME, SteeredClock, opened_at, request, url

POOL = "interactive"
DAY_MS = 86_400_000
GRACE_S = 3600.0


def age(artifacts: LocalArtifacts, path: str, by_s: float = 2 * GRACE_S) -> None:
    then = time.time() - by_s
    os.utime(artifacts.root / path, (then, then))


async def made(store: SqlStore, artifacts: LocalArtifacts) -> tuple[str, Image]:
    """A job that has ended with an image, which is old."""
    key = await store.put_api_key("x", "a" * 64)
    (job_id,) = (await store.admit(key, POOL, [NewJob(request())], 1000)).job_ids
    lease = await store.lease_next("a", 60_000)
    assert lease is not None
    image = await artifacts.put(lease.generation_id, job_id.encode(), "image/png")
    assert await store.finish(lease, image, NO_TIME)
    await asyncio.to_thread(age, artifacts, image.path)
    return job_id, image


async def test_jobs_that_ended_long_ago_are_forgotten_and_their_images_go_with_the_next_collection(
    store: SqlStore, clock: SteeredClock, tmp_path: Path
) -> None:
    artifacts = LocalArtifacts(tmp_path / "artifacts")
    old, old_image = await made(store, artifacts)
    clock.advance(5 * DAY_MS)
    young, young_image = await made(store, artifacts)
    waiting = await store.add_job((await store.put_api_key("x", "a" * 64)).id, POOL, request())
    clock.advance(5 * DAY_MS)
    assert await forget(store, 10 * 86_400.0) == 1
    assert [job.id for job in await store.jobs([old, young, waiting.id])] == [young, waiting.id]
    assert await collect(store, artifacts, GRACE_S) == 1
    assert await artifacts.read(young_image) == young.encode()
    assert not (artifacts.root / old_image.path).exists()
    assert await collect(store, artifacts, GRACE_S) == 0
    days = await store.used("x", "2020-01-01")
    assert days is not None
    assert sum(day.images for day in days) == 2, "what was used is kept"


async def test_what_may_be_kept_for_ever_is(store: SqlStore, clock: SteeredClock, tmp_path: Path) -> None:
    job_id, _ = await made(store, LocalArtifacts(tmp_path))
    clock.advance(10_000 * DAY_MS)
    assert await forget(store, None) == 0
    assert await store.job(job_id) is not None


async def test_an_image_that_no_job_names_yet_is_left_alone_while_it_is_young(store: SqlStore, tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path / "artifacts")
    image = await artifacts.put("job_01mcc5rm007524k7qzqtcdn88q.1", b"not committed yet", "image/png")
    draft = artifacts.root / Path(image.path).with_name(".job_01mcc5rm007524k7qzqtcdn88q.1-cut.png.1.ab")
    await asyncio.to_thread(draft.write_bytes, b"half")
    await artifacts.set_mark("ours")
    assert await collect(store, artifacts, GRACE_S) == 0
    for path in (image.path, str(draft.relative_to(artifacts.root)), "letterpress-artifacts"):
        age(artifacts, path)
    assert await collect(store, artifacts, GRACE_S) == 2
    assert await artifacts.mark() == "ours"


async def test_a_bucket_is_collected_page_by_page_and_what_jobs_name_stays(store: SqlStore, tmp_path: Path) -> None:
    key = await store.put_api_key("x", "a" * 64)
    async with emulated_s3() as service:
        service.page = 2
        credentials = tmp_path / "credentials"
        write_credentials(credentials, service)
        artifacts = S3Artifacts(Bucket("images", "prod", REGION, service.endpoint, credentials=credentials))
        await artifacts.set_mark("ours")
        named = []
        for number in range(5):
            job_id = (await store.admit(key, POOL, [NewJob(request(seed=number))], 1000)).job_ids[0]
            lease = await store.lease_next("a", 60_000)
            assert lease is not None
            image = await artifacts.put(lease.generation_id, job_id.encode(), "image/png")
            await artifacts.put(f"{job_id}.9", b"of a lost attempt", "image/png")
            assert await store.finish(lease, image, NO_TIME)
            named.append(image)
        assert await collect(store, artifacts, GRACE_S) == 0, "all of it is young"
        for each in service.modified:
            service.modified[each] -= timedelta(seconds=2 * GRACE_S)
        young = await artifacts.put("job_01mcc5rm007524k7qzqtcdn88q.1", b"not committed yet", "image/png")
        assert await collect(store, artifacts, GRACE_S) == 5
        for image in named:
            assert await artifacts.read(image)
        assert await artifacts.read(young) == b"not committed yet"
        assert await artifacts.mark() == "ours"
        assert len(service.objects) == 5 + 1 + 1


async def test_a_request_may_be_repeated_for_a_day(store: SqlStore, clock: SteeredClock) -> None:
    key = (await store.create_api_key("y", "b" * 64, KeyLimits())).key
    mine = Repeatable("name", "a" * 64, waits=False)
    first = await store.admit(key, POOL, [NewJob(request())], 1000, mine)
    clock.advance(DAY_MS - 1)
    await forget(store, None)
    assert (await store.admit(key, POOL, [NewJob(request())], 1000, mine)).joined
    clock.advance(1)
    await forget(store, None)
    again = await store.admit(key, POOL, [NewJob(request())], 1000, mine)
    assert not again.joined
    assert again.job_ids != first.job_ids


async def test_a_backup_of_a_file_opens_while_the_store_works_on(tmp_path: Path) -> None:
    async with opened_at(url(tmp_path), database_clock) as store:
        key = await store.put_api_key("x", "a" * 64)
        kept = await store.add_job(key.id, POOL, request())
        file = tmp_path / "backup.sqlite"
        writing = asyncio.gather(*(store.add_job(key.id, POOL, request(seed=seed)) for seed in range(30)))
        said = await asyncio.to_thread(backup, url(tmp_path), file)
        await writing
    assert said.startswith(f"wrote {file}, a SQLite database of")
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    async with opened_at(f"sqlite+aiosqlite:///{file}", database_clock) as restored:
        assert await restored.job(kept.id) == kept
        assert await restored.lease_next("nobody", 1) is None


async def test_a_backup_of_postgres_is_restored_by_its_own_programs(postgres_url: str, tmp_path: Path) -> None:
    async with opened_at(postgres_url, database_clock) as store:
        key = await store.put_api_key("x", "a" * 64)
        kept = await store.add_job(key.id, POOL, request("a fox — 🦊"))
        file = tmp_path / "backup.dump"
        said = await asyncio.to_thread(backup, postgres_url, file)
        assert "an archive for pg_restore" in said
        await store.cancel_job(kept.id)
    plain = postgres_url.replace("postgresql+asyncpg", "postgresql")
    restore = ["pg_restore", "--clean", "--if-exists", "--no-owner", f"--dbname={plain}", str(file)]
    await asyncio.to_thread(subprocess.run, restore, check=True)
    async with opened_at(postgres_url, database_clock) as restored:
        job = await restored.job(kept.id)
        assert job == kept
        assert job is not None
        assert job.state is JobState.QUEUED


def test_a_backup_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "backup.sqlite"
    file.write_text("the one before")
    (tmp_path / "router.sqlite").write_bytes(b"this is not SQLite at all" * 100)
    with pytest.raises(BackupError, match="could not be copied"):
        backup(url(tmp_path), file)
    with pytest.raises(BackupError, match="cannot be written"):
        backup(url(tmp_path), tmp_path / "nowhere" / "backup")
    (tmp_path / "router.sqlite").unlink()
    with pytest.raises(BackupError, match="there is no database"):
        backup(url(tmp_path), file)
    assert file.read_text() == "the one before"
    assert {path.name for path in tmp_path.iterdir()} == {"backup.sqlite"}


async def test_an_upgrade_says_which_revision_it_has_come_to(database_url: str) -> None:
    said = await upgrade(database_url)
    newest = max(path.name[:4] for path in (ROOT / "router/store/migrations/versions").glob("0*.py"))
    assert said == f"the schema is at revision {newest}"


def test_the_program_speaks_of_the_database_that_the_settings_name(tmp_path: Path) -> None:
    def run(*verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "router.db", *verb],
            cwd=ROOT,
            env={**os.environ, "LETTERPRESS_ROUTER_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("upgrade").returncode == 0
    assert run("backup", str(tmp_path / "b.sqlite")).returncode == 0
    with sqlite3.connect(tmp_path / "b.sqlite") as copied:
        assert copied.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    copied.close()
    bad = run("backup", str(tmp_path / "nowhere" / "b"))
    assert (bad.returncode, "cannot be written" in bad.stderr) == (os.EX_UNAVAILABLE, True)
