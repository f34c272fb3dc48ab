"""What an open request leaves behind when it cannot be served to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fastapi import Request
from starlette.types import Message

from router.api.context import Context
from router.api.links import Links
from router.api.refusals import RefusedError
from router.api.waiting import make
from router.contract import JobState, WorkerRegistration
from router.core import CoreConfig, open_core
from router.errors import StoreUnavailableError
from router.jobs import Job
from router.readiness import Examiner
from router.store import ApiKey
from tests.ports import free_ports


async def test_one_job_that_cannot_be_cancelled_hides_neither_the_others_nor_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_core(CoreConfig(f"sqlite+aiosqlite:///{tmp_path}/router.db", tmp_path / "artifacts")) as core:
        # Registered and not there: its jobs wait.
        nobody = WorkerRegistration(url=f"http://127.0.0.1:{free_ports(1)[0]}", token="t" * 16, pool="batch")
        await core.fleet.register("w-1", nobody)
        key = await core.store.put_api_key("default", "0" * 64)
        cancel, seen = core.service.cancel, list[str]()

        async def cancel_but_the_first(key: ApiKey, job_id: str) -> Job | None:
            seen.append(job_id)
            if len(seen) == 1:
                raise StoreUnavailableError("the database is locked")
            return await cancel(key, job_id)

        async def gone() -> Message:
            return {"type": "http.disconnect"}

        monkeypatch.setattr(core.service, "cancel", cancel_but_the_first)
        context = Context(
            core,
            Links("http://x", b"k", 60),
            asyncio.Event(),
            lambda: 1,
            lambda: 0.0,
            "1",
            Examiner(core, "1", lambda: False),
        )
        wanted = [{"prompt": "a", "seed": seed} for seed in range(3)]
        with pytest.raises(RefusedError, match="the client closed the connection"):
            await make(context, Request({"type": "http"}, gone), key, "batch", wanted)
        jobs = [await core.store.job(job_id) for job_id in seen]
    assert [job.state for job in jobs if job] == [JobState.QUEUED, JobState.CANCELLED, JobState.CANCELLED]
