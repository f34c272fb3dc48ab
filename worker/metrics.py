"""What Prometheus reads of a worker. Durations are seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from worker.contract import Accepted, Event, Failed, Finished, Started, Step, WorkerState, WorkerStatus

STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0, 8.0)
PART_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Idle:
    """Seconds between two generations in which the device had nothing to do, by whose doing."""

    no_work: float
    not_ready: float


def idle(ended: float, accepted: float, began: float) -> Idle:
    """Between one that `ended` and the next, which was `accepted` before or after that, and `began` to be rendered."""
    had_work = min(max(ended, accepted), began)
    return Idle(no_work=max(0.0, had_work - ended), not_ready=max(0.0, began - max(ended, had_work)))


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
        self._busy = Counter(
            "letterpress_worker_rendering_seconds", "Seconds in which an image was rendered.", registry=self._registry
        )
        self._idle = Counter(
            "letterpress_worker_idle_seconds",
            "Seconds in which none was, since the first: no_work, nothing was accepted; not_ready, something was, and "
            "its text was still encoded, or the last file was in its way.",
            ["why"],
            registry=self._registry,
        )
        self._rendered_until: float | None = None
        self._step_begun: dict[str, float] = {}

    def rendered(self, accepted: float, began: float, ended: float) -> None:
        """Count the device's work and what it waited for before; `worker.runner.Observer`."""
        if self._rendered_until is not None:
            waited = idle(self._rendered_until, accepted, began)
            self._idle.labels("no_work").inc(waited.no_work)
            self._idle.labels("not_ready").inc(waited.not_ready)
        self._busy.inc(ended - began)
        self._rendered_until = ended

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
