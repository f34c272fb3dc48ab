"""A worker as several drivers see it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from router.choice import Capability
from router.contract import WorkerHealth, WorkerView, fingerprint
from router.fleet.seen import merged
from router.store import RegisteredWorker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORKER = RegisteredWorker("a", "http://127.0.0.1:1", "t" * 16, "interactive", draining=False, finished=7)


def seen(health: WorkerHealth, running: int = 0) -> WorkerView:
    return WorkerView(
        name="a",
        url=WORKER.url,
        pool=WORKER.pool,
        token_fingerprint=fingerprint(WORKER.token),
        health=health,
        since=NOW,
        draining=False,
        running=running,
        finished=0,
    )


def test_one_that_reaches_it_knows_more_than_one_that_does_not() -> None:
    found = merged(WORKER, [seen(WorkerHealth.UNREACHABLE), seen(WorkerHealth.READY, 1)], NOW)
    assert found.health is WorkerHealth.READY


def test_what_all_of_them_run_is_counted_and_what_it_finished_is_the_stores() -> None:
    found = merged(WORKER, [seen(WorkerHealth.READY, 1), seen(WorkerHealth.READY, 1)], NOW)
    assert (found.running, found.finished) == (2, 7)


def test_of_whom_nobody_speaks_that_is_said() -> None:
    view = merged(WORKER, [], NOW)
    assert view.health is WorkerHealth.UNKNOWN
    assert "is one running?" in view.reason


def test_what_a_worker_can_do_is_known_while_nobody_speaks_of_it() -> None:
    view = merged(replace(WORKER, capability=Capability("fp8", "house-style", 2**20)), [], NOW)
    assert (view.tier, view.model, view.max_pixels) == ("fp8", "house-style", 2**20)
