"""An engine that does what a test says, when the test says so, behind the real `Engine` protocol."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from PIL import Image

from worker import picture
from worker.contract import Event, GenerationRequest
from worker.engine import Description, OnStage, OnStep, Prepared, Rendered, Stop, StoppedError
from worker.generation import Generation
from worker.presets import sampling
from worker.runner import Limits, Runner
from worker.stages import WARM_UP

PATIENCE_S = 30.0
"""A test that waits longer than this has failed."""
DESCRIPTION = Description(model="scripted", engine="scripted", device="none")


class ScriptedEngine:
    """Takes one command at a time. `hurried` finishes every generation by itself; with `gated`, preparing and
    encoding wait for commands of their own, and otherwise they just happen."""

    def __init__(self, *, hurried: bool = False, gated: bool = False, loading: Exception | None = None) -> None:
        self.prepared: list[GenerationRequest] = []
        """What it began to prepare, in order; `asked` is what it began to render."""
        self.asked: list[GenerationRequest] = []
        self.encoding = threading.Semaphore(0)
        """Released once for each image that begins to become a file, with `gated`."""
        self.active = 0
        self.most_active = 0
        self._hurried = hurried
        self._gated = gated
        self._loading = loading
        self._commands: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
        self._preparations: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._encodings: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def step(self) -> None:
        self._commands.put("step")

    def finish(self) -> None:
        self._commands.put("finish")

    def fail(self, error: BaseException) -> None:
        self._commands.put(error)

    def prepare_one(self, error: BaseException | None = None) -> None:
        self._preparations.put(error)

    def encode_one(self, error: BaseException | None = None) -> None:
        self._encodings.put(error)

    def load(self, on_stage: OnStage) -> Description:
        on_stage("reading the script")
        if self._loading:
            raise self._loading
        return DESCRIPTION

    def prepare(self, request: GenerationRequest) -> Prepared:
        if request != WARM_UP:
            self.prepared.append(request)
            if self._gated and (error := self._preparations.get(timeout=PATIENCE_S)):
                raise error
        return Prepared(request=request, payload=None, text=0.0)

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        request = prepared.request
        if request == WARM_UP:
            return rendered(request)
        self.asked.append(request)
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            made = self._perform(request, on_step, stop)
        finally:
            self.active -= 1
        return replace(made, image=HeldImage(made.image, self._encodings, self.encoding)) if self._gated else made

    def _perform(self, request: GenerationRequest, on_step: OnStep, stop: Stop) -> Rendered:
        for step in range(1, sampling(request).steps + 1):
            if not self._hurried:
                match self._commands.get(timeout=PATIENCE_S):
                    case "finish":
                        return rendered(request)
                    case BaseException() as error:
                        raise error
            on_step(step)
            if stop():
                raise StoppedError("stopped")
        return rendered(request)


class HeldImage(Image.Image):
    """An image whose file is written when the test says so."""

    def __init__(
        self, image: Image.Image, encodings: queue.SimpleQueue[BaseException | None], begun: threading.Semaphore
    ) -> None:
        super().__init__()
        self._im, self._mode, self._size = image.im, image.mode, image.size
        self._encodings, self._begun = encodings, begun

    # Pillow's signature.
    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002, ANN401
        self._begun.release()
        if error := self._encodings.get(timeout=PATIENCE_S):
            raise error
        super().save(fp, format, **params)


def rendered(request: GenerationRequest) -> Rendered:
    """A plain image whose colour depends on the whole request and on nothing else."""
    red, green, blue = hashlib.sha256(request.model_dump_json().encode()).digest()[:3]
    image = Image.new("RGB", (request.width, request.height), (red, green, blue))
    return Rendered(image=image, denoise=0.0, decode=0.0)


def file_of(request: GenerationRequest) -> bytes:
    """What is delivered for it."""
    return picture.encode(rendered(request).image, request, DESCRIPTION).data


class Witness:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.busy: list[tuple[float, float, float]] = []

    def saw(self, event: Event, now: float) -> None:  # noqa: ARG002 - this one needs no time
        self.events.append(event)

    def rendered(self, accepted: float, began: float, ended: float) -> None:
        self.busy.append((accepted, began, ended))


class Clock:
    """Stands still until it is told how many seconds to advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def scripted_runner(
    engine: ScriptedEngine, *, clock: Callable[[], float] = time.monotonic, limits: Limits | None = None
) -> Runner:
    return Runner(lambda: engine, DESCRIPTION, clock=clock, observer=Witness(), limits=limits or Limits())


@asynccontextmanager
async def ready_runner(
    engine: ScriptedEngine, *, clock: Callable[[], float] = time.monotonic, limits: Limits | None = None
) -> AsyncIterator[Runner]:
    runner = scripted_runner(engine, clock=clock, limits=limits)
    assert await runner.load() is None
    try:
        yield runner
    finally:
        runner.close()


async def until(what: Callable[[], object], why: str) -> None:
    """Let the loop run until `what` is true; AssertionError saying `why` if that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, f"never came: {why}"
        await asyncio.sleep(0.001)


async def story(generation: Generation) -> list[Event]:
    """Every event of `generation`, to its end."""
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in generation.follow(heartbeat_s=PATIENCE_S) if event]


def request(seed: int = 1, *, prompt: str = "a fox", steps: int = 3) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, width=256, height=256, steps=steps, seed=seed)
