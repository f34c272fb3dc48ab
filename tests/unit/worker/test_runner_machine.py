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
from worker.engine import EngineBrokenError, InvalidRequestError, OutOfMemoryError, TooLargeError
from worker.failures import (
    BusyError,
    ConflictError,
    ImageGoneError,
    NotFinishedError,
    NotReadyError,
    UnknownGenerationError,
)
from worker.generation import Generation
from worker.runner import Limits, Runner

T = TypeVar("T")
KEEP_S = 600.0
STEPS = 3
IDS = st.sampled_from([f"job{n}.{attempt}" for n in range(3) for attempt in (1, 2)])
SEEDS = st.integers(1, 2)
ERRORS: dict[FailureType, type[Exception]] = {
    FailureType.INVALID_REQUEST: InvalidRequestError,
    FailureType.TOO_LARGE: TooLargeError,
    FailureType.OUT_OF_MEMORY: OutOfMemoryError,
    FailureType.ENGINE_ERROR: KeyError,
}


class RunnerMachine(RuleBasedStateMachine):
    """The model: who is prepared, rendered and encoded; what is kept and since when; the trouble in a row.

    `preparing` is the queue of the thread that prepares, its first one in its midst; who was ended meanwhile
    stays there until its turn. `rendered` says that the running one only waits for the place behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.start()

    @precondition(lambda self: not self.held() and self.state is not WorkerState.READY)
    @rule()
    def restart(self) -> None:
        """What a unit does after its worker has ended; without it, most of a run would be spent with a dead one."""
        self.end()
        self.start()

    def start(self) -> None:
        self.engine = ScriptedEngine(gated=True)
        self.generations: dict[str, Generation] = {}
        self.running: str | None = None
        self.accepted: str | None = None
        self.encoding: str | None = None
        self.preparing: list[Generation] = []
        self.prepared: set[str] = set()
        self.rendering = self.rendered = False
        self.stopping = False
        self.steps = 0
        self.kept: dict[str, float] = {}
        self.forgotten: set[str] = set()
        self.begun: list[GenerationRequest] = []
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
        self.end()
        self.loop.close()

    def end(self) -> None:
        while self.preparing or self.rendering or self.encoding:
            if self.preparing:
                self.prepare()
            if self.rendering:
                self.finish()
            if self.encoding:
                self.encode()
        self.do(until(lambda: not self.runner._tasks, "every generation came to its end"))
        assert self.runner.close()

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    def held(self) -> set[str]:
        return {name for name in (self.running, self.accepted, self.encoding) if name}

    @rule(generation_id=IDS, seed=SEEDS)
    def put(self, generation_id: str, seed: int) -> None:
        wanted = request(seed, steps=STEPS)
        known = self.generations.get(generation_id)

        async def put() -> Generation:
            return self.runner.put(generation_id, wanted)

        if known and generation_id in self.held() | self.kept.keys():
            if known.request == wanted:
                assert self.do(put()) is known
            else:
                with pytest.raises(ConflictError):
                    self.do(put())
        elif self.state is not WorkerState.READY:
            with pytest.raises(NotReadyError):
                self.do(put())
        elif self.running and self.accepted:
            with pytest.raises(BusyError):
                self.do(put())
        else:
            generation = self.generations[generation_id] = self.do(put())
            self.forgotten.discard(generation_id)
            self.prepared.discard(generation_id)
            if self.running:
                self.accepted = generation_id
            else:
                self._run(generation_id)
            self.preparing.append(generation)
            if len(self.preparing) == 1:
                self.begun.append(wanted)

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
            assert generation_id in self.held()
        except ImageGoneError:
            assert generation_id in self.forgotten
        except UnknownGenerationError:
            assert generation_id not in self.held()
            assert generation_id not in self.kept or isinstance(self.generations[generation_id].end, Failed)
        else:
            assert generation_id in self.kept
            assert got == file_of(self.generations[generation_id].request)

    @rule(held=st.sampled_from(["running", "accepted", "encoding"]))
    def cancel_what_is_held(self, held: str) -> None:
        if generation_id := {"running": self.running, "accepted": self.accepted, "encoding": self.encoding}[held]:
            self.cancel(generation_id)

    @rule(generation_id=IDS)
    def cancel(self, generation_id: str) -> None:
        self.runner.cancel(generation_id)
        if generation_id == self.accepted:
            self.accepted = None
            self._kept(generation_id, FailureType.CANCELLED)
        elif generation_id == self.running and not self.rendered:
            self.stopping = True

    @precondition(lambda self: self.preparing)
    @rule()
    def prepare(self) -> None:
        self.engine.prepare_one()
        generation = self.preparing.pop(0)
        if generation.end is None:
            self.prepared.add(generation.id)
            if generation.id == self.running:
                self._render()
        self._prepare_next()

    @precondition(lambda self: self.preparing)
    @rule(kind=st.sampled_from(list(ERRORS)))
    def prepare_in_vain(self, kind: FailureType) -> None:
        self.engine.prepare_one(ERRORS[kind]("as told"))
        self._failed(self.preparing.pop(0), kind)
        self._prepare_next()

    @precondition(lambda self: self.preparing)
    @rule()
    def lose_the_device_while_preparing(self) -> None:
        self.engine.prepare_one(EngineBrokenError("as told"))
        self._failed(self.preparing.pop(0), FailureType.ENGINE_ERROR, lost=True)
        self._prepare_next()

    @precondition(lambda self: self.rendering)
    @rule()
    def step(self) -> None:
        self.engine.step()
        if not self.running:
            self.rendering = False  # ended from outside: it is told to stop, and does
            return
        self.steps += 1
        if self.stopping:
            self._failed(self.generations[self.running], FailureType.CANCELLED)
        elif self.steps == STEPS:
            self._rendered()
        else:
            generation, count = self.generations[self.running], 2 + self.steps
            self.do(until(lambda: len(generation.events) == count, "the step"))

    @precondition(lambda self: self.rendering)
    @rule()
    def finish(self) -> None:
        """The engine may end before it sees that it was to stop."""
        self.engine.finish()
        if self.running:
            self._rendered()
        else:
            self.rendering = False

    @precondition(lambda self: self.rendering and self.running)
    @rule(kind=st.sampled_from(list(ERRORS)))
    def fail(self, kind: FailureType) -> None:
        self.engine.fail(ERRORS[kind]("as told"))
        self._failed(self.generations[str(self.running)], kind)

    @precondition(lambda self: self.rendering and self.running)
    @rule()
    def lose_the_device(self) -> None:
        self.engine.fail(EngineBrokenError("as told"))
        self._failed(self.generations[str(self.running)], FailureType.ENGINE_ERROR, lost=True)

    @precondition(lambda self: self.encoding)
    @rule()
    def encode(self) -> None:
        self.engine.encode_one()
        ended, self.encoding = str(self.encoding), None
        self._kept(ended, None)
        self.trouble = 0
        self._encode_next()

    @precondition(lambda self: self.encoding)
    @rule()
    def encode_in_vain(self) -> None:
        self.engine.encode_one(OSError("as told"))
        self._failed(self.generations[str(self.encoding)], FailureType.ENGINE_ERROR)
        self._encode_next()

    @precondition(lambda self: self.held() and self.drained is None)
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
        modelled = self.state, self.running, self.accepted, self.encoding

        def agree() -> bool:
            status = self.runner.status()
            return (status.state, status.running, status.accepted, status.encoding) == modelled

        self.do(until(agree, f"the worker is as modelled: {modelled}"))
        assert self.runner.broken.is_set() == (self.state is WorkerState.BROKEN)
        assert len(self.runner.kept) == len(self.kept)
        self.do(until(lambda: self.engine.prepared == self.begun, "what was accepted was prepared, in order"))
        self.do(until(lambda: self.engine.asked == self.started, "what was prepared was rendered, in order"))
        assert self.engine.most_active <= 1

    @invariant()
    def draining_ends_exactly_when_nothing_is_left(self) -> None:
        if self.drained:
            self.do(asyncio.sleep(0))
            assert self.drained.done() == (not self.held())

    def _run(self, generation_id: str) -> None:
        """The running place is given to it."""
        self.running, self.steps, self.stopping = generation_id, 0, False
        if generation_id in self.prepared:
            self._render()

    def _render(self) -> None:
        generation = self.generations[str(self.running)]
        if self.stopping:
            self._failed(generation, FailureType.CANCELLED)
        else:
            self.rendering = True
            self.started.append(generation.request)

    def _rendered(self) -> None:
        self.rendering, self.rendered = False, True
        if not self.encoding:
            self._encode_next()

    def _prepare_next(self) -> None:
        """The thread goes on to the first that still wants it; a running one that was told to stop learns so here."""
        while self.preparing:
            generation = self.preparing[0]
            if generation.end is None and not (generation.id == self.running and self.stopping):
                self.begun.append(generation.request)
                return
            self.preparing.pop(0)
            self._failed(generation, FailureType.CANCELLED)

    def _encode_next(self) -> None:
        if self.rendered and self.running:
            self.encoding, self.rendered = self.running, False
            self._move_up()

    def _move_up(self) -> None:
        self.running = None
        if self.accepted and self.state is not WorkerState.BROKEN:
            following, self.accepted = self.accepted, None
            self._run(following)

    def _failed(self, generation: Generation, failure: FailureType, *, lost: bool = False) -> None:
        """A stage of `generation` failed, which may have been ended from outside before."""
        if failure in {FailureType.OUT_OF_MEMORY, FailureType.ENGINE_ERROR}:
            self.trouble += 1
        breaks = (lost or self.trouble >= 2) and self.state is not WorkerState.BROKEN
        if breaks:
            self.state = WorkerState.BROKEN
        name = generation.id
        if self.generations[name] is generation and name in self.held():
            if name == self.encoding:
                self.encoding = None
            elif name == self.accepted:
                self.accepted = None
            else:
                self.rendering = self.rendered = False
                self._move_up()
            self._kept(name, failure)
        if breaks:
            for held in (self.accepted, self.running):
                if held:
                    self._kept(held, FailureType.DRAINING)
            self.accepted = self.running = None
            self.rendered = False

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
