"""What the router tells Prometheus, on the admin app.

Counts that the store keeps (jobs, attempts, workers) are read when somebody asks, so that they are true after
a restart and on every router of one store. What only this process sees (requests, and how long the jobs that
ended here took) is counted as it happens. Every label is drawn from a closed set or from what the operator
named: nothing that a client sends becomes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from router.api.requests import Served
from router.contract import JobState, TunnelState, TunnelsView, WorkerHealth, WorkerView
from router.jobs import AttemptEnd, Job
from router.webhooks import Again, Dead, Delivered, Verdict

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_S = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_JOB_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 14_400, 43_200)


_RESULTS: Mapping[type[Verdict], str] = {Delivered: "delivered", Again: "failed", Dead: "dead"}


class Metrics:
    """One registry a router process; a second one in the same process shares nothing with it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "letterpress_http_requests", "Requests that ended.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "letterpress_http_request_seconds",
            "From the request's arrival to the end of its answer; waiting for images is part of it.",
            ("route",),
            registry=self._registry,
            buckets=_REQUEST_S,
        )
        self._tries = Counter(
            "letterpress_webhook_tries", "Tries to deliver a webhook that ended.", ("result",), registry=self._registry
        )
        self._wait = self._job_seconds("letterpress_job_wait_seconds", "From a job's creation to its first attempt.")
        self._service = self._job_seconds("letterpress_job_service_seconds", "From a job's first attempt to its end.")

    def served(self, request: Served) -> None:
        """A request has ended. Status 0 (the connection broke first) counts as 499, nginx's number for it."""
        self._requests.labels(request.route, request.method, str(request.status or 499)).inc()
        self._seconds.labels(request.route).observe(request.seconds)

    def delivered(self, verdict: Verdict) -> None:
        """A try to deliver a webhook has ended so."""
        self._tries.labels(_RESULTS[type(verdict)]).inc()

    def changed(self, job: Job) -> None:
        """A job has changed in this process; only its end is measured."""
        if job.state.ended and job.started_at is not None and job.finished_at is not None:
            self._wait.labels(job.pool).observe((job.started_at - job.created_at) / 1000)
            self._service.labels(job.pool).observe((job.finished_at - job.started_at) / 1000)

    def text(
        self,
        jobs: Mapping[str, Mapping[JobState, int]],
        attempts: Mapping[str, Mapping[AttemptEnd, int]],
        workers: Iterable[WorkerView],
        tunnels: TunnelsView,
    ) -> bytes:
        """The exposition, with the store's counts (by pool) and the fleet's state as of now."""
        now = CollectorRegistry()
        _counts(now, jobs, attempts)
        _workers(now, workers)
        _tunnels(now, tunnels)
        return generate_latest(now) + generate_latest(self._registry)

    def _job_seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ("pool",), registry=self._registry, buckets=_JOB_S)


def _counts(
    registry: CollectorRegistry,
    jobs: Mapping[str, Mapping[JobState, int]],
    attempts: Mapping[str, Mapping[AttemptEnd, int]],
) -> None:
    held = Gauge("letterpress_jobs", "Jobs in the store.", ("pool", "state"), registry=registry)
    depth = Gauge("letterpress_queue_depth", "Jobs that wait for a worker.", ("pool",), registry=registry)
    for pool, by_state in jobs.items():
        for state in JobState:
            held.labels(pool, state).set(by_state.get(state, 0))
        depth.labels(pool).set(by_state.get(JobState.QUEUED, 0))
    ended = CounterMetricFamily("letterpress_attempts", "Attempts that ended, and how.", labels=("pool", "end"))
    for pool, by_end in attempts.items():
        for end in AttemptEnd:
            ended.add_metric((pool, end), by_end.get(end, 0))
    registry.register(_Fixed(ended))


def _workers(registry: CollectorRegistry, workers: Iterable[WorkerView]) -> None:
    views = list(workers)
    count = Gauge("letterpress_workers", "Registered workers.", ("pool", "health"), registry=registry)
    running = Gauge(
        "letterpress_worker_running", "Jobs that a worker holds a lease on.", ("worker",), registry=registry
    )
    for pool in {view.pool for view in views}:
        for health in WorkerHealth:
            count.labels(pool, health).set(sum(view.pool == pool and view.health is health for view in views))
    for view in views:
        running.labels(view.name).set(view.running)


def _tunnels(registry: CollectorRegistry, view: TunnelsView) -> None:
    count = Gauge("letterpress_tunnels", "This host's tunnels.", ("state",), registry=registry)
    for state in TunnelState:
        count.labels(state).set(sum(tunnel.state is state for tunnel in view.tunnels))
    closed = Gauge("letterpress_tunnel_ways_closed", "Workers whose way through a tunnel is shut.", registry=registry)
    closed.set(sum(not way.up for tunnel in view.tunnels for way in tunnel.forwards))
    trouble = Gauge("letterpress_tunnels_trouble", "1 while the tunnel service cannot do its work.", registry=registry)
    trouble.set(bool(view.trouble))


class _Fixed:
    """A collector of one family that was made elsewhere (counters from a store cannot be incremented here)."""

    def __init__(self, family: CounterMetricFamily) -> None:
        self._family = family

    def collect(self) -> Iterable[CounterMetricFamily]:
        return (self._family,)
