"""What the router tells Prometheus, on the admin app. docs/monitoring/README.md lists it for people.

Whatever the store knows (jobs, attempts, waits, busy workers, webhooks) is read there when somebody asks: it is true
after a restart and whichever process did the work, and every router of one store says the same. What only this
process sees (requests, tries of webhooks) is counted as it happens; what only this host knows (tunnels) comes from
their service's file. Every label is drawn from a closed set or from what the operator named: nothing that a client
sends becomes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from router.api.requests import Served
from router.contract import DeliveryState, JobState, TunnelState, TunnelsView, WorkerHealth, WorkerView
from router.core import Core
from router.jobs import AttemptEnd
from router.store import Measure, Tally
from router.store.sum_rows import BOUNDS_S
from router.webhooks import Again, Dead, Delivered, Verdict

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_S = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)
_RESULTS: Mapping[type[Verdict], str] = {Delivered: "delivered", Again: "failed", Dead: "dead"}


@dataclass(frozen=True, slots=True)
class Seen:
    """How everything is now. `oldest_ms` is by pool."""

    jobs: Mapping[str, Mapping[JobState, int]] = field(default_factory=dict)
    oldest_ms: Mapping[str, int] = field(default_factory=dict)
    tallies: Sequence[Tally] = ()
    webhooks: Mapping[DeliveryState, int] = field(default_factory=dict)
    webhook_lag_ms: int = 0
    workers: Sequence[WorkerView] = ()
    tunnels: TunnelsView = field(default_factory=TunnelsView)


async def look(core: Core, tunnels: TunnelsView) -> Seen:
    """Asks the store. Raises StoreUnavailableError."""
    store = core.store
    return Seen(
        jobs=await store.counts(),
        oldest_ms=await store.oldest_waiting_ms(),
        tallies=await store.tallies(),
        webhooks=await store.outbox.counts(),
        webhook_lag_ms=await store.outbox.lag_ms(),
        workers=core.fleet.views(),
        tunnels=tunnels,
    )


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
        for result in _RESULTS.values():
            self._tries.labels(result)  # a rate begins at a zero that was seen

    def served(self, request: Served) -> None:
        """A request has ended. Status 0 (the connection broke first) counts as 499, nginx's number for it."""
        self._requests.labels(request.route, request.method, str(request.status or 499)).inc()
        self._seconds.labels(request.route).observe(request.seconds)

    def delivered(self, verdict: Verdict) -> None:
        """A try to deliver a webhook has ended so."""
        self._tries.labels(_RESULTS[type(verdict)]).inc()

    def text(self, seen: Seen) -> bytes:
        """The exposition: what is seen now, and what this process has counted."""
        now = CollectorRegistry()
        _jobs(now, seen)
        _tallies(now, seen.tallies)
        _workers(now, seen.workers)
        _webhooks(now, seen)
        _tunnels(now, seen.tunnels)
        return generate_latest(now) + generate_latest(self._registry)


def _jobs(registry: CollectorRegistry, seen: Seen) -> None:
    held = Gauge("letterpress_jobs", "Jobs in the store.", ("pool", "state"), registry=registry)
    depth = Gauge("letterpress_queue_depth", "Jobs that wait for a worker.", ("pool",), registry=registry)
    oldest = Gauge(
        "letterpress_queue_oldest_seconds", "How long the oldest has waited that waits.", ("pool",), registry=registry
    )
    for pool in seen.jobs.keys() | {view.pool for view in seen.workers}:
        by_state = seen.jobs.get(pool, {})
        for state in JobState:
            held.labels(pool, state).set(by_state.get(state, 0))
        depth.labels(pool).set(by_state.get(JobState.QUEUED, 0))
        oldest.labels(pool).set(seen.oldest_ms.get(pool, 0) / 1000)
    ended = CounterMetricFamily("letterpress_attempts", "Attempts that ended, and how.", labels=("pool", "end"))
    counted = {tally.of: tally.count for tally in seen.tallies if tally.measure is Measure.ENDED}
    for pool in {name.partition("/")[0] for name in counted}:
        for end in AttemptEnd:
            ended.add_metric((pool, end), counted.get(f"{pool}/{end}", 0))
    registry.register(_Fixed(ended))


def _tallies(registry: CollectorRegistry, tallies: Sequence[Tally]) -> None:
    wait = HistogramMetricFamily(
        "letterpress_job_wait_seconds", "From a job's creation to its first attempt.", labels=("pool",)
    )
    service = HistogramMetricFamily(
        "letterpress_job_service_seconds", "From a job's first attempt to its end.", labels=("pool",)
    )
    for family, measure in ((wait, Measure.WAIT), (service, Measure.SERVICE)):
        for pool in sorted({tally.of for tally in tallies if tally.measure is measure}):
            family.add_metric(
                (pool,), *_histogram(tally for tally in tallies if (tally.of, tally.measure) == (pool, measure))
            )
        registry.register(_Fixed(family))
    busy = CounterMetricFamily(
        "letterpress_worker_busy_seconds", "Seconds in which a worker's GPU made images.", labels=("worker",)
    )
    images = CounterMetricFamily("letterpress_worker_images", "Images that a worker has made.", labels=("worker",))
    for tally in tallies:
        if tally.measure is Measure.BUSY:
            busy.add_metric((tally.of,), tally.total_ms / 1000)
            images.add_metric((tally.of,), tally.count)
    registry.register(_Fixed(busy))
    registry.register(_Fixed(images))


def _histogram(tallies: Iterable[Tally]) -> tuple[list[tuple[str, float]], float]:
    """Prometheus' cumulative buckets, and the sum."""
    counts, total_ms = [0] * (len(BOUNDS_S) + 1), 0
    for tally in tallies:
        counts[tally.bucket] += tally.count
        total_ms += tally.total_ms
    ends = [*(str(float(bound)) for bound in BOUNDS_S), "+Inf"]
    return [(end, float(sum(counts[: at + 1]))) for at, end in enumerate(ends)], total_ms / 1000


def _workers(registry: CollectorRegistry, views: Sequence[WorkerView]) -> None:
    count = Gauge("letterpress_workers", "Registered workers.", ("pool", "health"), registry=registry)
    running = Gauge(
        "letterpress_worker_running", "Jobs that a worker holds a lease on.", ("worker", "pool"), registry=registry
    )
    for pool in {view.pool for view in views}:
        for health in WorkerHealth:
            count.labels(pool, health).set(sum(view.pool == pool and view.health is health for view in views))
    for view in views:
        running.labels(view.name, view.pool).set(view.running)


def _webhooks(registry: CollectorRegistry, seen: Seen) -> None:
    count = Gauge("letterpress_webhooks", "Webhooks in the outbox.", ("state",), registry=registry)
    for state in DeliveryState:
        count.labels(state).set(seen.webhooks.get(state, 0))
    lag = Gauge(
        "letterpress_webhook_lag_seconds", "How long the webhook that is due longest has been so.", registry=registry
    )
    lag.set(seen.webhook_lag_ms / 1000)


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

    def __init__(self, family: CounterMetricFamily | HistogramMetricFamily) -> None:
        self._family = family

    def collect(self) -> Iterable[CounterMetricFamily | HistogramMetricFamily]:
        return (self._family,)
