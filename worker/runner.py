"""Runs generations: one at a time in the engine's thread, one more accepted behind it.

Accept, join, run, cancel, keep, drain; and the health that follows from how generations end. All of it
lives in one event loop and none of it waits for the engine there. It knows nothing of HTTP
(`worker.app`) nor of how an image is made (`worker.engine`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

import structlog

from worker.contract import (
    MIN_SIDE,
    Accepted,
    Event,
    Failed,
    FailureType,
    Finished,
    GenerationRequest,
    Started,
    Step,
    Timings,
    WorkerState,
    WorkerStatus,
)
from worker.engine import (
    Description,
    Engine,
    EngineBrokenError,
    EngineError,
    InvalidRequestError,
    MakeEngine,
    OutOfMemoryError,
    Picture,
    StoppedError,
)
from worker.engine.thread import EngineThread
from worker.generation import Generation, Kept
from worker.health import Health
from worker.presets import sampling

WARM_UP = GenerationRequest(prompt="a first image", width=MIN_SIDE, height=MIN_SIDE, steps=1, seed=0)
"""Made before the worker says ready, so that ready means: an image can be made."""

log = structlog.get_logger(__name__)


class RunnerError(Exception):
    """The root of what the runner answers instead of a generation; the messages are for the caller."""


class ConflictError(RunnerError):
    """The id was used with another request."""


class BusyError(RunnerError):
    """Both places are taken."""


class NotReadyError(RunnerError):
    """Loading, draining or broken."""


class UnknownGenerationError(RunnerError):
    """No generation of this id, or none that has an image."""


class NotFinishedError(RunnerError):
    """It is accepted or running."""


class ImageGoneError(RunnerError):
    """It was finished and kept for its time."""


class Observer(Protocol):
    """Told every event of every generation as it happens, with the time by the runner's clock."""

    def saw(self, event: Event, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations in seconds; see `worker.settings`."""

    keep_finished_s: float = 600.0
    drain_grace_s: float = 30.0


class Runner:
    """One engine's work. Every method belongs to the event loop that `load` is awaited in.

    `planned` says what is to be loaded, until loading says what was. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        make_engine: MakeEngine,
        planned: Description,
        *,
        clock: Callable[[], float],
        observer: Observer,
        limits: Limits,
    ) -> None:
        self.health = Health()
        self.broken = asyncio.Event()
        self.kept = Kept(limits.keep_finished_s)
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._description = planned
        self._clock = clock
        self._observer = observer
        self._limits = limits
        self._thread = EngineThread()
        self._running: Generation | None = None
        self._accepted: Generation | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._fetched = asyncio.Event()

    async def load(self) -> BaseException | None:
        """Load the engine and make a first image; ready afterwards, or broken, and then the error is returned."""
        loop = asyncio.get_running_loop()

        def stage(name: str) -> None:
            log.info("loading", stage=name)
            loop.call_soon_threadsafe(self._loading, name)

        def work() -> tuple[Engine, Description]:
            stage("importing the engine")
            engine = self._make_engine()
            description = engine.load(stage)
            stage("making a first image")
            engine.generate(WARM_UP, lambda _: None, lambda: False)
            return engine, description

        future = self._thread.call(work)
        await asyncio.wait({future})
        if error := future.exception():
            self._break(str(error) or repr(error))
            return error
        self._engine, self._description = future.result()
        self.health = self.health.loaded()
        log.info("loaded", model=self._description.model, device=self._description.device)
        return None

    def status(self) -> WorkerStatus:
        self.kept.expire(self._clock())
        return WorkerStatus(
            state=self.health.state,
            reason=self.health.reason,
            version=version("letterpress"),
            model=self._description.model,
            engine=self._description.engine,
            device=self._description.device,
            running=self._running.id if self._running else None,
            accepted=self._accepted.id if self._accepted else None,
        )

    def put(self, generation_id: str, request: GenerationRequest) -> Generation:
        """Start, join or return the generation of this id.

        Raises ConflictError, BusyError or NotReadyError; an id that is known is joined in any state.
        """
        if known := self._find(generation_id):
            if known.request != request:
                raise ConflictError(f"generation {generation_id} was started with another request; take another id")
            return known
        if self.health.state is not WorkerState.READY:
            raise NotReadyError(f"the worker is {self.health.state}: {self.health.reason}")
        if self._running and self._accepted:
            raise BusyError(
                f"{self._running.id} runs and {self._accepted.id} is accepted; try again when one has ended"
            )
        generation = Generation(generation_id, request, self._clock())
        self._tell(generation, Accepted(id=generation_id))
        self._idle.clear()
        if self._running:
            self._accepted = generation
        else:
            self._start(generation)
        return generation

    def image(self, generation_id: str) -> bytes:
        """The finished PNG. Raises NotFinishedError, ImageGoneError or UnknownGenerationError."""
        generation = self._find(generation_id)
        if generation is None:
            if self.kept.forgot(generation_id):
                raise ImageGoneError(f"the image of generation {generation_id} was kept for its time and is no more")
            raise UnknownGenerationError(f"there is no generation {generation_id}")
        if generation.image is not None:
            generation.fetched = True
            self._fetched.set()
            return generation.image
        if isinstance(generation.end, Failed):
            raise UnknownGenerationError(f"generation {generation_id} failed and has no image: {generation.end.detail}")
        raise NotFinishedError(f"generation {generation_id} has not ended; follow it by PUTting it again")

    def cancel(self, generation_id: str) -> None:
        """End it without an image: at once while it is accepted, after the current step while it runs.

        One that has ended, or never was, is left as it is.
        """
        if self._accepted and self._accepted.id == generation_id:
            self._drop_accepted(FailureType.CANCELLED, "cancelled before it started")
        elif self._running and self._running.id == generation_id:
            self._running.stop.set()

    async def drain(self, reason: str) -> None:
        """Take nothing new and return when nothing is left.

        What runs is finished. What is accepted is too if it can start within the grace, and fails otherwise.
        """
        self.health = self.health.draining(reason)
        grace = asyncio.get_running_loop().call_later(
            self._limits.drain_grace_s,
            self._drop_accepted,
            FailureType.DRAINING,
            "the worker was told to stop before this generation started",
        )
        await self._idle.wait()
        grace.cancel()

    async def collected(self, within_s: float) -> None:
        """Return when every image that ended in the last `within_s` was fetched, or is older than that."""
        while (oldest := self.kept.oldest_unfetched(since=self._clock() - within_s)) is not None:
            self._fetched.clear()
            try:
                async with asyncio.timeout(max(0.0, oldest + within_s - self._clock()) + 0.01):
                    await self._fetched.wait()
            except TimeoutError:
                continue

    def close(self, timeout_s: float = 1.0) -> bool:
        """End the engine's thread; whether it did. False: it is within a call that may never return."""
        return self._thread.close(timeout_s)

    def _find(self, generation_id: str) -> Generation | None:
        for generation in (self._running, self._accepted):
            if generation and generation.id == generation_id:
                return generation
        return self.kept.get(generation_id, self._clock())

    def _loading(self, stage: str) -> None:
        self.health = self.health.loading(stage)

    def _start(self, generation: Generation) -> None:
        self._running = generation
        self._task = asyncio.get_running_loop().create_task(self._run(generation), name=generation.id)
        self._task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        """A fault of our own while a generation ran must not leave its followers waiting."""
        if not task.cancelled() and (error := task.exception()) and self._running:
            self._fail(self._running, EngineBrokenError(f"the runner failed ({type(error).__name__}); see its log"))
            self._advance()
            log.error("the runner failed", exc_info=error)

    async def _run(self, generation: Generation) -> None:
        engine, loop = self._engine, asyncio.get_running_loop()
        if engine is None:
            raise AssertionError("a generation was accepted before the engine was loaded")
        started_at, request = self._clock(), generation.request
        steps = sampling(request).steps
        self._tell(generation, Started(id=generation.id, steps=steps))

        def on_step(step: int) -> None:
            loop.call_soon_threadsafe(self._tell, generation, Step(id=generation.id, step=step, steps=steps))

        def work() -> tuple[Picture, str]:
            picture = engine.generate(request, on_step, generation.stop.is_set)
            return picture, hashlib.sha256(picture.png).hexdigest()

        future = self._thread.call(work)
        await asyncio.wait({future})
        error = future.exception()
        if error is None:
            self.health = self.health.succeeded()
            self._finish(generation, *future.result(), started_at)
        else:
            self._fail(generation, error)
        self._advance()

    def _finish(self, generation: Generation, picture: Picture, sha256: str, started_at: float) -> None:
        generation.image = picture.png
        spent, request = picture.spent, generation.request
        finished = Finished(
            id=generation.id,
            sha256=sha256,
            bytes=len(picture.png),
            width=request.width,
            height=request.height,
            seed=request.seed,
            timings=Timings(
                queued=started_at - generation.accepted_at,
                text=spent.text,
                denoise=spent.denoise,
                decode=spent.decode,
                encode=spent.encode,
                total=self._clock() - generation.accepted_at,
            ),
        )
        self._end(generation, finished)

    def _fail(self, generation: Generation, error: BaseException) -> None:
        failed = failure(generation.id, error)
        if not isinstance(error, EngineError):
            log.error("the engine failed", id=generation.id, exc_info=error)
        self._end(generation, failed)
        self.health = self.health.failed(failed.type, failed.detail)
        if isinstance(error, EngineBrokenError):
            self._break(failed.detail)
        elif self.health.state is WorkerState.BROKEN:
            self._break(self.health.reason)

    def _advance(self) -> None:
        """The running generation has ended: its place goes to the accepted one."""
        self._running, self._task = None, None
        if self._accepted:
            following, self._accepted = self._accepted, None
            self._start(following)
        else:
            self._idle.set()

    def _break(self, reason: str) -> None:
        self.health = self.health.broken(reason)
        log.error("broken", reason=reason)
        self._drop_accepted(FailureType.DRAINING, f"the worker broke before this generation started: {reason}")
        self.broken.set()

    def _drop_accepted(self, kind: FailureType, detail: str) -> None:
        if dropped := self._accepted:
            self._accepted = None
            retryable = kind is not FailureType.CANCELLED
            self._end(dropped, Failed(id=dropped.id, type=kind, detail=detail, retryable=retryable))

    def _end(self, generation: Generation, end: Finished | Failed) -> None:
        self._tell(generation, end)
        self.kept.add(generation, self._clock())
        outcome = "finished" if isinstance(end, Finished) else end.type.value
        log.info("generation ended", id=generation.id, outcome=outcome, seconds=self._since(generation))

    def _since(self, generation: Generation) -> float:
        return round(self._clock() - generation.accepted_at, 3)

    def _tell(self, generation: Generation, event: Event) -> None:
        generation.publish(event)
        self._observer.saw(event, self._clock())


def failure(generation_id: str, error: BaseException) -> Failed:
    """What an engine's error means to whoever asked for the image."""
    match error:
        case InvalidRequestError():
            kind, retryable = FailureType.INVALID_REQUEST, False
        case StoppedError():
            kind, retryable = FailureType.CANCELLED, False
        case OutOfMemoryError():
            kind, retryable = FailureType.OUT_OF_MEMORY, True
        case _:
            kind, retryable = FailureType.ENGINE_ERROR, True
    if isinstance(error, EngineError):
        return Failed(id=generation_id, type=kind, detail=str(error), retryable=retryable)
    # A fault's own words may quote the prompt; they are in the log.
    detail = f"the engine failed ({type(error).__name__}); the worker's log has the rest"
    return Failed(id=generation_id, type=kind, detail=detail, retryable=retryable)
