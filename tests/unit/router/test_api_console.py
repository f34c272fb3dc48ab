"""The operator's page and the metrics say what the values say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from router import console
from router.api.requests import Served
from router.contract import DeliveryState, JobState, PoolView, WorkerHealth, WorkerView
from router.metrics import Metrics, Seen
from router.store import Measure, Tally
from router.store.sum_rows import BOUNDS_S
from router.webhooks import Delivered

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


SEEN = Seen(
    jobs={"interactive": {JobState.QUEUED: 3, JobState.SUCCEEDED: 40}},
    oldest_ms={"interactive": 2500},
    workers=[_worker("w-1", WorkerHealth.READY), _worker("w-2", WorkerHealth.BROKEN)],
    webhooks={DeliveryState.DEAD: 2},
    webhook_lag_ms=1500,
    tallies=[
        Tally("interactive", Measure.WAIT, 0, 3, 300),
        Tally("interactive", Measure.WAIT, 2, 1, 900),
        Tally("interactive", Measure.WAIT, len(BOUNDS_S), 1, 50_000_000),
        Tally("w-1", Measure.BUSY, 0, 4, 9000),
        Tally("interactive/finished", Measure.ENDED, 0, 40, 0),
        Tally("interactive/lost", Measure.ENDED, 0, 1, 0),
    ],
)


def _lines(metrics: Metrics) -> set[str]:
    return set(metrics.text(SEEN).decode().splitlines())


def test_metrics_count_jobs_attempts_and_workers_as_the_store_and_the_fleet_know_them() -> None:
    assert _lines(Metrics()) >= {
        'letterpress_jobs{pool="interactive",state="succeeded"} 40.0',
        'letterpress_jobs{pool="interactive",state="running"} 0.0',
        'letterpress_queue_depth{pool="interactive"} 3.0',
        'letterpress_attempts_total{end="lost",pool="interactive"} 1.0',
        'letterpress_attempts_total{end="expired",pool="interactive"} 0.0',
        'letterpress_workers{health="broken",pool="interactive"} 1.0',
    }


def test_a_request_whose_connection_broke_counts_as_499() -> None:
    metrics = Metrics()
    metrics.served(Served("POST", "/generate", 0, 2.0))
    assert 'letterpress_http_requests_total{method="POST",route="/generate",status="499"} 1.0' in _lines(metrics)


def test_what_was_added_up_is_a_histogram_and_busy_seconds() -> None:
    assert _lines(Metrics()) >= {
        'letterpress_job_wait_seconds_bucket{le="0.25",pool="interactive"} 3.0',
        'letterpress_job_wait_seconds_bucket{le="0.5",pool="interactive"} 3.0',
        'letterpress_job_wait_seconds_bucket{le="1.0",pool="interactive"} 4.0',
        'letterpress_job_wait_seconds_bucket{le="43200.0",pool="interactive"} 4.0',
        'letterpress_job_wait_seconds_bucket{le="+Inf",pool="interactive"} 5.0',
        'letterpress_job_wait_seconds_count{pool="interactive"} 5.0',
        'letterpress_job_wait_seconds_sum{pool="interactive"} 50001.2',
        'letterpress_worker_busy_seconds_total{worker="w-1"} 9.0',
        'letterpress_worker_images_total{worker="w-1"} 4.0',
    }


def test_ages_and_lags_are_in_seconds() -> None:
    assert _lines(Metrics()) >= {
        'letterpress_queue_oldest_seconds{pool="interactive"} 2.5',
        "letterpress_webhook_lag_seconds 1.5",
        'letterpress_webhooks{state="dead"} 2.0',
        'letterpress_webhooks{state="pending"} 0.0',
    }


def test_every_result_of_a_webhook_is_there_before_the_first() -> None:
    metrics = Metrics()
    assert 'letterpress_webhook_tries_total{result="dead"} 0.0' in _lines(metrics)
    metrics.delivered(Delivered(204))
    assert 'letterpress_webhook_tries_total{result="delivered"} 1.0' in _lines(metrics)
