"""What Prometheus reads of a worker. Durations are seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from worker.contract import Accepted, Event, Failed, Finished, Started, Step, WorkerState, WorkerStatus

STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0, 8.0)
PART_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Metrics:
    """A registry of its own, so that several workers of one process (tests) do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._generations = Counter(
            "letterpress_worker_generations",
            "Generations that ended, by outcome (finished, or why not).",
            ["outcome"],
            registry=self._registry,
        )
        self._steps = Histogram(
            "letterpress_worker_step_seconds",
            "One denoising step, both branches.",
            buckets=STEP_BUCKETS,
            registry=self._registry,
        )
        self._parts = Histogram(
            "letterpress_worker_part_seconds",
            "The parts of finished generations.",
            ["part"],
            buckets=PART_BUCKETS,
            registry=self._registry,
        )
        self._state = Gauge(
            "letterpress_worker_state", "1 for the state that the worker is in.", ["state"], registry=self._registry
        )
        self._places = Gauge(
            "letterpress_worker_places_taken",
            "1 where the running and the accepted place is taken.",
            ["place"],
            registry=self._registry,
        )
        self._kept_images = Gauge(
            "letterpress_worker_kept_bytes", "Bytes of finished images in memory.", registry=self._registry
        )
        self._step_begun: dict[str, float] = {}

    def saw(self, event: Event, now: float) -> None:
        """Count `event`; `worker.runner.Observer`. The first step's time begins after the text part, which is
        known only at the end, so steps are timed from the second on."""
        match event:
            case Accepted() | Started():
                pass
            case Step():
                if (begun := self._step_begun.get(event.id)) is not None:
                    self._steps.observe(now - begun)
                self._step_begun[event.id] = now
            case Finished():
                self._step_begun.pop(event.id, None)
                self._generations.labels("finished").inc()
                for part, seconds in event.timings.model_dump().items():
                    self._parts.labels(part).observe(seconds)
            case Failed():
                self._step_begun.pop(event.id, None)
                self._generations.labels(event.type.value).inc()

    def follow(self, status: Callable[[], WorkerStatus], kept_bytes: Callable[[], int]) -> None:
        """Read state and places when they are asked for, not when they change."""

        def is_in(state: WorkerState) -> float:
            return float(status().state is state)

        for state in WorkerState:
            self._state.labels(state.value).set_function(partial(is_in, state))
        self._places.labels("running").set_function(lambda: float(status().running is not None))
        self._places.labels("accepted").set_function(lambda: float(status().accepted is not None))
        self._kept_images.set_function(lambda: float(kept_bytes()))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)
