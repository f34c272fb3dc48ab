"""The stages of an engine's work, each in a thread of its own: load and render, prepare, encode.

So one image is rendered while the next one's text is encoded and the last one's file is written. What is
awaited here runs there; what runs when is `worker.runner`'s.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import structlog

from worker import picture
from worker.contract import MIN_SIDE, GenerationRequest, Metadata
from worker.engine import (
    Description,
    Engine,
    EngineBrokenError,
    MakeEngine,
    OnStage,
    OnStep,
    Prepared,
    Rendered,
    StoppedError,
)
from worker.engine.thread import Done, StageThread
from worker.picture import Picture

T = TypeVar("T")
log = structlog.get_logger(__name__)

LOOKS = 10
"""How often a stage is looked at before it is given up: its patience in tenths."""
WARM_UP = GenerationRequest(prompt="a first image", width=MIN_SIDE, height=MIN_SIDE, steps=1, seed=0)
"""Made before the worker says ready, so that ready means: an image can be made."""


class Stage(StrEnum):
    LOAD = "load"
    PREPARE = "prepare"
    RENDER = "render"
    ENCODE = "encode"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds without a sign of life after which a stage is given up, while loading and afterwards."""

    load_s: float = 3600.0
    work_s: float = 300.0


class StageFailedError(Exception):
    """A stage raised `error`, whatever that was."""

    def __init__(self, stage: Stage, error: BaseException) -> None:
        super().__init__(f"{stage}: {type(error).__name__}")
        self.stage, self.error = stage, error


class Stages:
    """One engine at work. All methods belong to one event loop; those that wait raise StageFailedError."""

    def __init__(
        self,
        make_engine: MakeEngine,
        clock: Callable[[], float],
        blocked_share: float,
        metadata: Metadata,
        patience: Patience,
    ) -> None:
        self._make_engine = make_engine
        self._patience = patience
        self._blocked_share, self._metadata = blocked_share, metadata
        self._engine: Engine | None = None
        self._description: Description | None = None
        self._turns = asyncio.Lock()
        self._rendering = StageThread("engine", clock)
        self._preparing = StageThread("prepare", clock)
        self._encoding = StageThread("encode", clock)

    async def load(self, on_stage: OnStage) -> Description:
        """Make the engine ready, and a first image with it."""

        def told(stage: str) -> None:
            self._rendering.moved()
            on_stage(stage)

        def work() -> tuple[Engine, Description]:
            told("importing the engine")
            engine = self._make_engine()
            return engine, engine.load(told)

        self._engine, self._description = (await self._done(Stage.LOAD, self._rendering, work)).value
        on_stage("making a first image")
        begun = time.monotonic()
        prepared = await self.prepare(WARM_UP, threading.Event())
        rendered = await self.render(prepared.value, lambda _: None, lambda: False)
        await self.encode(rendered.value, WARM_UP)
        log.info("first image", seconds=round(time.monotonic() - begun, 2))
        return self._description

    async def prepare(self, request: GenerationRequest, stopped: threading.Event) -> Done[Prepared]:
        """Nothing is begun once `stopped` is set, and StoppedError raised."""
        engine = self._loaded()[0]
        # Not the thread's own queue: who fails may stop the one behind it, and that is known in the loop first.
        async with self._turns:
            if stopped.is_set():
                raise StageFailedError(Stage.PREPARE, StoppedError("stopped before its text was encoded"))
            return await self._done(Stage.PREPARE, self._preparing, lambda: engine.prepare(request))

    async def render(self, prepared: Prepared, on_step: OnStep, stop: Callable[[], bool]) -> Done[Rendered]:
        engine = self._loaded()[0]

        def told(step: int) -> None:
            self._rendering.moved()
            on_step(step)

        def work() -> Rendered:
            if stop():
                raise StoppedError("stopped before its first step")
            return engine.render(prepared, told, stop)

        return await self._done(Stage.RENDER, self._rendering, work)

    async def encode(self, rendered: Rendered, request: GenerationRequest) -> Done[Picture]:
        description, share, metadata = self._loaded()[1], self._blocked_share, self._metadata
        return await self._done(
            Stage.ENCODE, self._encoding, lambda: picture.encode(rendered.image, request, description, share, metadata)
        )

    def close(self, timeout_s: float) -> bool:
        """End the threads; whether all did. False: one is within a call that may never return."""
        deadline = time.monotonic() + timeout_s
        threads = (self._preparing, self._encoding, self._rendering)
        ended = [thread.close(max(0.0, deadline - time.monotonic())) for thread in threads]
        return all(ended)

    def _loaded(self) -> tuple[Engine, Description]:
        if self._engine is None or self._description is None:
            raise AssertionError("a stage was called before the engine was loaded")
        return self._engine, self._description

    async def _done(self, stage: Stage, thread: StageThread, work: Callable[[], T]) -> Done[T]:
        """What `work` returned. EngineBrokenError if it neither ends nor moves for as long as patience goes.

        Looks are counted, not seconds: on a machine that is starved the looks come late too. The thread is left
        where it is, since nothing can be done about it from here.
        """
        future = thread.call(work)
        future.add_done_callback(_heard)
        patience_s = self._patience.load_s if stage is Stage.LOAD else self._patience.work_s

        def moves() -> int:
            # Where memory is short, a prompt is encoded only when the picture before it is drawn.
            return thread.moves + (self._rendering.moves if stage is Stage.PREPARE else 0)

        seen, quiet = moves(), 0
        while not (await asyncio.wait({future}, timeout=patience_s / LOOKS))[0]:
            before, seen = seen, moves()
            quiet = quiet + 1 if seen == before else 0
            if quiet == LOOKS:
                log.error("hangs", stage=stage.value, seconds=patience_s, where=thread.where())
                hangs = f"the {stage} stage gave no sign of life for {patience_s:g} s; only a new process helps"
                raise StageFailedError(stage, EngineBrokenError(hangs))
        if error := future.exception():
            raise StageFailedError(stage, error) from error
        return future.result()


def _heard(future: asyncio.Future[Done[T]]) -> None:
    """An error that comes after the stage was given up is nobody's any more; without this, asyncio would tell it."""
    if not future.cancelled():
        future.exception()
