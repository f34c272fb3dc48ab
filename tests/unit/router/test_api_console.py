"""The operator's page and the metrics say what the values say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from router import console
from router.api.requests import Served
from router.contract import JobState, PoolView, TunnelsView, WorkerHealth, WorkerView
from router.jobs import AttemptEnd, Job
from router.metrics import Metrics
from worker.contract import GenerationRequest

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
POOL = PoolView(name="interactive", workers=2, ready=1, queued=3, running=1, succeeded=40, failed=0, cancelled=2)


def _worker(name: str, health: WorkerHealth, reason: str = "") -> WorkerView:
    return WorkerView(
        name=name,
        url="http://127.0.0.1:9001",
        pool="interactive",
        token_fingerprint="0123456789ab",
        health=health,
        reason=reason,
        since=NOW - timedelta(minutes=5),
        draining=False,
        running=0,
        finished=4,
    )


def test_a_worker_shows_its_health_since_when_and_why() -> None:
    page = console.page([POOL], [_worker("w-1", WorkerHealth.UNREACHABLE, "connection refused")], "1.2", NOW)
    assert '<td class="health bad">unreachable</td><td class=n>5 min</td>' in page
    assert "connection refused" in page


def test_what_a_worker_says_cannot_become_markup() -> None:
    page = console.page([POOL], [_worker("w-1", WorkerHealth.BROKEN, "<script>alert(1)</script>")], "1.2", NOW)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_loads_nothing_from_anywhere() -> None:
    page = console.page([POOL], [_worker("w-1", WorkerHealth.READY)], "1.2", NOW)
    assert "src=" not in page
    assert "//" not in page.replace("http://127.0.0.1:9001", "").replace("<!doctype html>", "")


def test_the_first_sentence_says_whether_images_can_be_made() -> None:
    dead = POOL.model_copy(update={"ready": 0})
    assert "<p>No worker is registered" in console.page([], [], "1.2", NOW)
    assert "<p>No worker is ready in interactive" in console.page(
        [dead], [_worker("w-1", WorkerHealth.BROKEN)], "1.2", NOW
    )
    assert "<p>1 of 2 workers are ready" in console.page(
        [POOL], [_worker("w-1", WorkerHealth.READY), _worker("w-2", WorkerHealth.LOADING)], "1.2", NOW
    )


def _lines(metrics: Metrics) -> set[str]:
    text = metrics.text(
        {"interactive": {JobState.QUEUED: 3, JobState.SUCCEEDED: 40}},
        {"interactive": {AttemptEnd.FINISHED: 40, AttemptEnd.LOST: 1}},
        [_worker("w-1", WorkerHealth.READY), _worker("w-2", WorkerHealth.BROKEN)],
        TunnelsView(),
    )
    return set(text.decode().splitlines())


def test_metrics_count_jobs_attempts_and_workers_as_the_store_and_the_fleet_know_them() -> None:
    assert _lines(Metrics()) >= {
        'letterpress_jobs{pool="interactive",state="succeeded"} 40.0',
        'letterpress_jobs{pool="interactive",state="running"} 0.0',
        'letterpress_queue_depth{pool="interactive"} 3.0',
        'letterpress_attempts_total{end="lost",pool="interactive"} 1.0',
        'letterpress_workers{health="broken",pool="interactive"} 1.0',
    }


def test_a_request_whose_connection_broke_counts_as_499() -> None:
    metrics = Metrics()
    metrics.served(Served("POST", "/generate", 0, 2.0))
    assert 'letterpress_http_requests_total{method="POST",route="/generate",status="499"} 1.0' in _lines(metrics)


def test_an_ended_job_leaves_its_wait_and_its_service_time() -> None:
    metrics = Metrics()
    request = GenerationRequest(prompt="a", seed=1)
    job = Job("job_1", "key", "batch", JobState.SUCCEEDED, request, 1, 1_000, 4_000, 9_000, None, None)
    metrics.changed(job)
    assert _lines(metrics) >= {
        'letterpress_job_wait_seconds_sum{pool="batch"} 3.0',
        'letterpress_job_service_seconds_sum{pool="batch"} 5.0',
    }
