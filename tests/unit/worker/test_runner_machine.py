"""The runner against a model of it, in every order that Hypothesis can think of."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.worker.scripted import Clock, ScriptedEngine, file_of, request, scripted_runner, story, until
from worker.contract import (
    Accepted,
    Failed,
    FailureType,
    Finished,
    GenerationRequest,
    Started,
    Step,
    WorkerState,
)
from worker.engine import EngineBrokenError, InvalidRequestError, OutOfMemoryError
from worker.generation import Generation
from worker.runner import (
    BusyError,
    ConflictError,
    ImageGoneError,
    Limits,
    NotFinishedError,
    NotReadyError,
    Runner,
    UnknownGenerationError,
)

T = TypeVar("T")
KEEP_S = 600.0
STEPS = 3
IDS = st.sampled_from([f"job{n}.{attempt}" for n in range(3) for attempt in (1, 2)])
SEEDS = st.integers(1, 2)
ERRORS: dict[FailureType, type[Exception]] = {
    FailureType.INVALID_REQUEST: InvalidRequestError,
    FailureType.OUT_OF_MEMORY: OutOfMemoryError,
    FailureType.ENGINE_ERROR: KeyError,
}


class RunnerMachine(RuleBasedStateMachine):
    """The model: two places, what is kept and since when, and the trouble in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.start()

    @precondition(lambda self: self.running is None and self.state is not WorkerState.READY)
    @rule()
    def restart(self) -> None:
        """What a unit does after its worker has ended; without it, most of a run would be spent with a dead one."""
        self.runner.close()
        self.start()

    def start(self) -> None:
        self.engine = ScriptedEngine()
        self.generations: dict[str, Generation] = {}
        self.requests: dict[str, GenerationRequest] = {}
        self.running: str | None = None
        self.accepted: str | None = None
        self.stopping = False
        self.steps = 0
        self.kept: dict[str, float] = {}
        self.forgotten: set[str] = set()
        self.started: list[GenerationRequest] = []
        self.trouble = 0
        self.state = WorkerState.READY
        self.drained: asyncio.Task[None] | None = None
        self.runner = self.do(self.loaded())

    async def loaded(self) -> Runner:
        runner = scripted_runner(self.engine, clock=self.clock, limits=Limits(KEEP_S, drain_grace_s=1e6))
        await runner.load()
        return runner

    def teardown(self) -> None:
        while self.running:
            self.finish()
        self.runner.close()
        self.loop.close()

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    @rule(generation_id=IDS, seed=SEEDS)
    def put(self, generation_id: str, seed: int) -> None:
        wanted = request(seed, steps=STEPS)
        known = generation_id in (self.running, self.accepted) or generation_id in self.kept

        async def put() -> Generation:
            return self.runner.put(generation_id, wanted)

        if known and self.requests[generation_id] != wanted:
            with pytest.raises(ConflictError):
                self.do(put())
        elif known:
            assert self.do(put()) is self.generations[generation_id]
        elif self.state is not WorkerState.READY:
            with pytest.raises(NotReadyError):
                self.do(put())
        elif self.running and self.accepted:
            with pytest.raises(BusyError):
                self.do(put())
        else:
            self.generations[generation_id] = self.do(put())
            self.requests[generation_id] = wanted
            self.forgotten.discard(generation_id)
            if self.running:
                self.accepted = generation_id
            else:
                self._started(generation_id)

    @precondition(lambda self: self.state is WorkerState.READY and not self.accepted)
    @rule(seed=SEEDS, count=st.integers(1, 2))
    def put_new(self, seed: int, count: int) -> None:
        for _ in range(count):
            self.put(f"new{len(self.generations)}.1", seed)

    @rule(generation_id=IDS)
    def image(self, generation_id: str) -> None:
        try:
            got = self.runner.image(generation_id)
        except NotFinishedError:
            assert generation_id in (self.running, self.accepted)
        except ImageGoneError:
            assert generation_id in self.forgotten
        except UnknownGenerationError:
            assert generation_id not in (self.running, self.accepted)
            assert generation_id not in self.kept or isinstance(self.generations[generation_id].end, Failed)
        else:
            assert generation_id in self.kept
            assert got == file_of(self.requests[generation_id])

    @rule(held=st.sampled_from(["running", "accepted"]))
    def cancel_what_is_held(self, held: str) -> None:
        if generation_id := self.running if held == "running" else self.accepted:
            self.cancel(generation_id)

    @rule(generation_id=IDS)
    def cancel(self, generation_id: str) -> None:
        self.runner.cancel(generation_id)
        if generation_id == self.accepted:
            self.accepted = None
            self._kept(generation_id, FailureType.CANCELLED)
        elif generation_id == self.running:
            self.stopping = True

    @precondition(lambda self: self.running)
    @rule()
    def step(self) -> None:
        self.steps += 1
        self.engine.step()
        if self.stopping or self.steps == STEPS:
            self._ended(FailureType.CANCELLED if self.stopping else None)
        else:
            generation, count = self.generations[str(self.running)], 2 + self.steps
            self.do(until(lambda: len(generation.events) == count, "the step"))

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        """The engine may end before it sees that it was to stop."""
        self.engine.finish()
        self._ended(None)

    @precondition(lambda self: self.running)
    @rule(kind=st.sampled_from(list(ERRORS)))
    def fail(self, kind: FailureType) -> None:
        self.engine.fail(ERRORS[kind]("as told"))
        self._ended(kind)

    @precondition(lambda self: self.running)
    @rule()
    def lose_the_device(self) -> None:
        self.engine.fail(EngineBrokenError("as told"))
        self._ended(FailureType.ENGINE_ERROR, lost=True)

    @precondition(lambda self: self.running and self.drained is None)
    @rule()
    def drain(self) -> None:
        self.drained = self.loop.create_task(self.runner.drain("told to stop"))
        self.do(asyncio.sleep(0))
        if self.state is WorkerState.READY:
            self.state = WorkerState.DRAINING

    @rule(seconds=st.sampled_from([1, 300, KEEP_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        for generation_id in [name for name, at in self.kept.items() if self.clock.now - at > KEEP_S]:
            del self.kept[generation_id]
            self.forgotten.add(generation_id)

    @invariant()
    def the_places_are_as_modelled(self) -> None:
        status = self.runner.status()
        assert (status.state, status.running, status.accepted) == (self.state, self.running, self.accepted)
        assert self.runner.broken.is_set() == (self.state is WorkerState.BROKEN)
        assert len(self.runner.kept) == len(self.kept)
        self.do(until(lambda: self.engine.asked == self.started, "the engine was asked for what was started, in order"))
        assert self.engine.most_active <= 1

    @invariant()
    def draining_ends_exactly_when_nothing_is_left(self) -> None:
        if self.drained:
            self.do(asyncio.sleep(0))
            assert self.drained.done() == (self.running is None)

    def _started(self, generation_id: str) -> None:
        self.running, self.steps, self.stopping = generation_id, 0, False
        self.started.append(self.requests[generation_id])

    def _ended(self, failure: FailureType | None, *, lost: bool = False) -> None:
        ended = str(self.running)
        self.do(until(lambda: self.runner.status().running != ended, "the end"))
        self.running = None
        self._kept(ended, failure)
        if failure is None:
            self.trouble = 0
        elif failure in {FailureType.OUT_OF_MEMORY, FailureType.ENGINE_ERROR}:
            self.trouble += 1
        if lost or self.trouble >= 2:
            self.state = WorkerState.BROKEN
            if self.accepted:
                self._kept(self.accepted, FailureType.DRAINING)
        elif self.accepted:
            self._started(self.accepted)
        self.accepted = None

    def _kept(self, generation_id: str, failure: FailureType | None) -> None:
        self.kept[generation_id] = self.clock.now
        accepted, *between, end = self.do(story(self.generations[generation_id]))
        assert isinstance(accepted, Accepted)
        if between:
            started, *steps = between
            assert isinstance(started, Started)
            assert [isinstance(event, Step) and event.step for event in steps] == list(range(1, len(steps) + 1))
        assert isinstance(end, Finished) if failure is None else isinstance(end, Failed) and end.type is failure


TestRunnerMachine = RunnerMachine.TestCase
TestRunnerMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
