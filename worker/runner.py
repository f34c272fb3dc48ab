"""Runs generations: one is rendered, one more is accepted and prepared behind it, and one becomes a file.

Accept, join, run, cancel, keep, drain; and the health that follows from how generations end. All of it
lives in one event loop and none of it waits for the engine there. It knows nothing of HTTP
(`worker.app`), of threads (`worker.stages`) nor of how an image is made (`worker.engine`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

import structlog

from worker import blocked
from worker.contract import (
    Accepted,
    Event,
    Failed,
    FailureType,
    Finished,
    GenerationRequest,
    ImageFormat,
    MediaType,
    Metadata,
    Started,
    Step,
    Timings,
    WorkerState,
    WorkerStatus,
)
from worker.engine import (
    Description,
    EngineBrokenError,
    EngineError,
    MakeEngine,
    Prepared,
    Rendered,
)
from worker.engine.thread import Done
from worker.failures import (
    BusyError,
    ConflictError,
    ImageGoneError,
    NotFinishedError,
    NotReadyError,
    UnknownGenerationError,
    failure,
)
from worker.generation import Generation, Kept
from worker.health import Health
from worker.identity import Identity
from worker.picture import Picture
from worker.presets import sampling
from worker.stages import Patience, StageFailedError, Stages

log = structlog.get_logger(__name__)


class Observer(Protocol):
    """Told every event of every generation as it happens, with the time by the runner's clock."""

    def saw(self, event: Event, now: float) -> None: ...

    def rendered(self, accepted: float, began: float, ended: float) -> None:
        """The device worked from `began` to `ended` on a generation that was accepted at `accepted`."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations in seconds; see `worker.settings`."""

    keep_finished_s: float = 600.0
    drain_grace_s: float = 30.0
    blocked_share: float = blocked.SHARE
    metadata: Metadata = Metadata.ALL
    patience: Patience = field(default_factory=Patience)


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
        identity: Identity = Identity(),  # noqa: B008 - frozen
    ) -> None:
        self.health = Health()
        self.broken = asyncio.Event()
        self.kept = Kept(limits.keep_finished_s)
        self._description = planned
        self._clock = clock
        self._observer = observer
        self._limits = limits
        self._stages = Stages(make_engine, clock, limits.blocked_share, limits.metadata, limits.patience)
        self._identity = identity
        self._running: Generation | None = None
        self._accepted: Generation | None = None
        self._encoding: Generation | None = None
        self._encoder = asyncio.Lock()
        self._tasks: dict[asyncio.Task[None], Generation] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._fetched = asyncio.Event()

    async def load(self) -> BaseException | None:
        """Load the engine and make a first image; ready afterwards, or broken, and then the error is returned."""
        loop = asyncio.get_running_loop()

        def stage(name: str) -> None:
            log.info("loading", stage=name)
            loop.call_soon_threadsafe(self._loading, name)

        try:
            self._description = await self._stages.load(stage)
        except StageFailedError as failed:
            self._break(str(failed.error) or repr(failed.error))
            return failed.error
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
            tier=self._description.tier,
            max_pixels=self._description.max_pixels,
            running=self._running.id if self._running else None,
            accepted=self._accepted.id if self._accepted else None,
            encoding=self._encoding.id if self._encoding else None,
            process=self._identity.process,
            machine=self._identity.machine,
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
        task = asyncio.get_running_loop().create_task(self._make(generation), name=generation_id)
        self._tasks[task] = generation
        task.add_done_callback(self._made)
        return generation

    def image(self, generation_id: str) -> bytes:
        """The finished file. Raises NotFinishedError, ImageGoneError or UnknownGenerationError."""
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

    def media_type(self, generation_id: str) -> MediaType:
        """What `image` gives is a file of this type."""
        generation = self._find(generation_id)
        return (generation.request.format if generation else ImageFormat.PNG).media_type

    def cancel(self, generation_id: str) -> None:
        """End it without an image: at once while it is accepted, after the current step while it runs.

        One whose image is made already, has ended, or never was, is left as it is.
        """
        if self._accepted and self._accepted.id == generation_id:
            self._drop(self._accepted, FailureType.CANCELLED, "cancelled before it started")
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
            "the worker was told to stop before this generation started",
        )
        await self._idle.wait()
        grace.cancel()

    async def collected(self, within_s: float) -> None:
        """Return when every image that ended in the last `within_s` was fetched, or is older than that.

        What is encoded when the worker breaks is an image too.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        while (oldest := self.kept.oldest_unfetched(since=self._clock() - within_s)) is not None:
            self._fetched.clear()
            try:
                async with asyncio.timeout(max(0.0, oldest + within_s - self._clock()) + 0.01):
                    await self._fetched.wait()
            except TimeoutError:
                continue

    def close(self, timeout_s: float = 1.0) -> bool:
        """End the engine's threads; whether they did. False: one is within a call that may never return."""
        return self._stages.close(timeout_s)

    def _find(self, generation_id: str) -> Generation | None:
        for generation in (self._running, self._accepted, self._encoding):
            if generation and generation.id == generation_id:
                return generation
        return self.kept.get(generation_id, self._clock())

    def _loading(self, stage: str) -> None:
        self.health = self.health.loading(stage)

    def _start(self, generation: Generation) -> None:
        """Give the running place to `generation`."""
        self._running = generation
        self._tell(generation, Started(id=generation.id, steps=sampling(generation.request).steps))
        generation.turn.set()

    def _made(self, task: asyncio.Task[None]) -> None:
        """A fault of our own while a generation was made must not leave its followers waiting."""
        generation = self._tasks.pop(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("the runner failed", exc_info=error)
            self._fail(generation, EngineBrokenError(f"the runner failed ({type(error).__name__}); see its log"))

    async def _make(self, generation: Generation) -> None:
        """From acceptance to the end: prepared at once, rendered in its turn, then encoded out of everybody's way.

        Whoever ends a generation from outside leaves this to find out after the stage that it is in.
        """
        request = generation.request
        try:
            prepared = await self._stages.prepare(request, generation.stop)
            await generation.turn.wait()
            if generation.end:
                return
            rendered = await self._render(generation, prepared.value)
            # The running place is kept until the last image is out of the way, or images would heap up here.
            async with self._encoder:
                if generation.end:
                    return
                self._encoding = generation
                self._leave(generation)
                encoded = await self._stages.encode(rendered.value, request)
                self._finish(generation, prepared, rendered, encoded)
        except StageFailedError as failed:
            self._fail(generation, failed.error)

    async def _render(self, generation: Generation, prepared: Prepared) -> Done[Rendered]:
        loop, steps = asyncio.get_running_loop(), sampling(generation.request).steps
        began = self._clock()

        def on_step(step: int) -> None:
            loop.call_soon_threadsafe(self._tell, generation, Step(id=generation.id, step=step, steps=steps))

        try:
            return await self._stages.render(prepared, on_step, generation.stop.is_set)
        finally:
            self._observer.rendered(generation.accepted_at, began, self._clock())

    def _finish(
        self, generation: Generation, prepared: Done[Prepared], rendered: Done[Rendered], encoded: Done[Picture]
    ) -> None:
        generation.image = encoded.value.data
        request, image = generation.request, rendered.value
        finished = Finished(
            id=generation.id,
            sha256=encoded.value.sha256,
            bytes=len(encoded.value.data),
            media_type=request.format.media_type,
            width=request.width,
            height=request.height,
            seed=request.seed,
            is_image_safe=not encoded.value.suspicion,
            safety_reason=encoded.value.suspicion,
            timings=Timings(
                queued=(
                    (prepared.began - generation.accepted_at)
                    + (rendered.began - prepared.ended)
                    + (encoded.began - rendered.ended)
                ),
                text=prepared.value.text + image.text,
                denoise=image.denoise,
                decode=image.decode,
                encode=encoded.ended - encoded.began,
                total=encoded.ended - generation.accepted_at,
            ),
        )
        self.health = self.health.succeeded()
        self._end(generation, finished)

    def _fail(self, generation: Generation, error: BaseException) -> None:
        """`generation`, which may have been ended by others meanwhile, failed with `error`."""
        failed = failure(generation.id, error)
        if not isinstance(error, EngineError):
            log.error("the engine failed", id=generation.id, exc_info=error)
        self.health = self.health.failed(failed.type, failed.detail)
        broken = isinstance(error, EngineBrokenError) or self.health.state is WorkerState.BROKEN
        if broken:
            # Nobody moves up.
            self.health = self.health.broken(failed.detail)
        self._end(generation, failed)
        if broken:
            self._break(self.health.reason)

    def _leave(self, generation: Generation) -> None:
        """Free the place that `generation` holds, if it holds one; the accepted one moves up."""
        if self._running is generation:
            self._running = None
            if self._accepted and self.health.state is not WorkerState.BROKEN:
                following, self._accepted = self._accepted, None
                self._start(following)
        elif self._accepted is generation:
            self._accepted = None

    def _break(self, reason: str) -> None:
        if self.broken.is_set():
            return
        self.health = self.health.broken(reason)
        log.error("broken", reason=reason)
        for held, when in ((self._accepted, "before this generation started"), (self._running, "under it")):
            if held:
                self._drop(held, FailureType.DRAINING, f"the worker broke {when}: {reason}")
        self.broken.set()

    def _drop_accepted(self, detail: str) -> None:
        if self._accepted:
            self._drop(self._accepted, FailureType.DRAINING, detail)

    def _drop(self, generation: Generation, kind: FailureType, detail: str) -> None:
        """End it from outside; whatever stage it is in learns so."""
        generation.stop.set()
        retryable = kind is not FailureType.CANCELLED
        self._end(generation, Failed(id=generation.id, type=kind, detail=detail, retryable=retryable))
        generation.turn.set()

    def _end(self, generation: Generation, end: Finished | Failed) -> None:
        """Once; a second end changes nothing."""
        if generation.end:
            return
        self._tell(generation, end)
        self.kept.add(generation, self._clock())
        outcome = "finished" if isinstance(end, Finished) else end.type.value
        log.info("generation ended", id=generation.id, outcome=outcome, seconds=self._since(generation))
        if self._encoding is generation:
            self._encoding = None
        self._leave(generation)
        if not (self._running or self._accepted or self._encoding):
            self._idle.set()

    def _since(self, generation: Generation) -> float:
        return round(self._clock() - generation.accepted_at, 3)

    def _tell(self, generation: Generation, event: Event) -> None:
        if generation.end:
            return  # a step of one that was ended from outside
        generation.publish(event)
        self._observer.saw(event, self._clock())
