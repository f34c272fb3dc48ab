"""/readyz is yes while jobs can be taken on, kept and answered, and says what is wrong when they cannot."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx

from router.contract import INTERACTIVE, Readiness
from router.core import open_core
from router.readiness import ARTIFACTS_EVERY_S, STORE_EVERY_S, Examiner
from tests.emulators.paced_process import paced_worker
from tests.integration.router.core_rig import brisk
from tests.integration.router.served import ServedRouter, served_router
from tests.postgres import FAST, postgres
from tests.small_disk import small_disk
from tests.stores import url as url_of


async def ask(router: ServedRouter, pool: str = "") -> tuple[int, Readiness]:
    async with router.http("") as http:
        answer = await http.get("/readyz", params={"pool": pool} if pool else {})
    return answer.status_code, Readiness.model_validate_json(answer.content)


async def test_a_router_without_workers_takes_traffic_and_tells_who_asks_for_a_pool() -> None:
    async with paced_worker() as worker, served_router() as router:
        status, found = await ask(router)
        assert (status, found.ready, found.store, found.artifacts, found.pools) == (200, True, "ok", "ok", {})
        assert (await ask(router, INTERACTIVE))[0] == 503
        await router.use("w-1", worker)
        status, found = await ask(router, INTERACTIVE)
        assert (status, found.pools) == (200, {INTERACTIVE: 1})
        async with httpx.AsyncClient(base_url=router.admin_url, trust_env=False) as admin:
            assert Readiness.model_validate_json((await admin.get("/readyz")).content) == found


async def test_a_store_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with postgres(**FAST) as server:
        async with open_core(replace(brisk(tmp_path), database_url=server.create())) as core:
            examiner = Examiner(core, "1", lambda: False)
            assert (await examiner.examine()).store == "ok"
            await asyncio.to_thread(server.stop)
            found = await examiner.examine()
            assert not found.ready
            assert "did not do as asked" in found.store
            await asyncio.to_thread(server.start)
            assert (await examiner.examine()).ready


async def test_a_postgres_that_may_only_be_read_is_named_and_written_to_now_and_then(tmp_path: Path) -> None:
    now = 0.0
    with postgres(**FAST) as server:
        url = server.create()
        name = url.partition("@/")[2].partition("?")[0]

        def may_only_be_read(word: str) -> None:
            server.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {word}")
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> 'postgres'")

        async with open_core(replace(brisk(tmp_path), database_url=url)) as core:
            examiner = Examiner(core, "1", lambda: False, lambda: now)
            facts = await asyncio.to_thread(server.sql, "SELECT * FROM facts", name)
            assert (await examiner.examine()).ready
            assert await asyncio.to_thread(server.sql, "SELECT * FROM facts", name) == facts
            await asyncio.to_thread(may_only_be_read, "on")
            assert (await examiner.examine()).ready, "it answers, and what was found is kept for a while"
            now += STORE_EVERY_S
            found = await examiner.examine()
            assert (found.ready, found.artifacts) == (False, "ok")
            assert "read-only transaction" in found.store
            await asyncio.to_thread(may_only_be_read, "off")
            now += STORE_EVERY_S
            assert (await examiner.examine()).ready


async def test_a_file_on_a_full_disk_is_named(tmp_path: Path) -> None:
    now = 0.0
    with small_disk("8m") as disk:
        async with open_core(replace(brisk(tmp_path), database_url=url_of(disk.folder))) as core:
            examiner = Examiner(core, "1", lambda: False, lambda: now)
            assert (await examiner.examine()).ready
            ballast = disk.fill()
            found = await examiner.examine()
            for _ in range(1000):  # the file's log has room of its own at first
                if not found.ready:
                    break
                now += STORE_EVERY_S
                found = await examiner.examine()
            assert (found.ready, found.artifacts) == (False, "ok")
            assert "disk is full" in found.store
            ballast.unlink()
            now += STORE_EVERY_S
            assert (await examiner.examine()).ready


async def test_an_artifact_store_that_takes_nothing_is_named_and_looked_at_now_and_then(tmp_path: Path) -> None:
    now = 0.0
    async with open_core(brisk(tmp_path)) as core:
        examiner = Examiner(core, "1", lambda: False, lambda: now)
        assert (await examiner.examine()).ready
        away = (tmp_path / "artifacts").rename(tmp_path / "away")
        (tmp_path / "artifacts").touch()
        assert (await examiner.examine()).ready, "what was found is kept for a while"
        now += ARTIFACTS_EVERY_S
        found = await examiner.examine()
        assert (found.ready, found.store) == (False, "ok")
        assert f"no image can be stored under {tmp_path}/artifacts" in found.artifacts
        (tmp_path / "artifacts").unlink()
        away.rename(tmp_path / "artifacts")
        now += ARTIFACTS_EVERY_S
        assert (await examiner.examine()).ready


async def test_a_router_that_leaves_is_not_ready_though_all_is_well(tmp_path: Path) -> None:
    leaving = False
    async with open_core(brisk(tmp_path)) as core:
        examiner = Examiner(core, "1", lambda: leaving)
        assert (await examiner.examine()).ready
        leaving = True
        found = await examiner.examine()
    assert (found.ready, found.draining, found.store, found.artifacts) == (False, True, "ok", "ok")
