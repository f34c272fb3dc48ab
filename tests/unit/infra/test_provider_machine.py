"""A machine is never rented twice and never forgotten, whatever its cloud answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infra.clouds import (
    Ability,
    Access,
    CloudError,
    HostKind,
    Machine,
    MachineSpec,
    Market,
    Observed,
    Offer,
    OutcomeUnknownError,
    Presence,
)
from infra.provider.border import Border, struct_of
from infra.provider.machine import MachineInputs, MachineResource, MachineState
from infra.provider.resource import Condition, ProviderError
from infra.stack import CloudName

OFFER = Offer("cpu.on_demand", "local", Market.ON_DEMAND, "", 0, "here", 0.0)
INPUTS = MachineInputs(name="lp-abcdefgh-a-1-g1", cloud=CloudName.LOCAL, offer=OFFER)


class Mood(Enum):
    """How the scripted cloud treats the next request."""

    WELL = auto()
    REFUSES = auto()
    LOSES_THE_REQUEST = auto()
    LOSES_THE_ANSWER = auto()
    SILENT = auto()


@dataclass
class ScriptedCloud:
    """A cloud at the `Cloud` seam whose mood a test chooses; it would rent the same name twice."""

    mood: Mood = Mood.WELL
    alive: list[Machine] = field(default_factory=list)
    rented: int = 0

    @property
    def name(self) -> str:
        return "scripted"

    @property
    def ability(self) -> Ability:
        return Ability(rents=True, markets=frozenset(Market), host=HostKind.VM)

    async def offers(self) -> Sequence[Offer]:
        return [OFFER]

    async def find(self, name: str) -> Machine | None:
        self._answer()
        return next((machine for machine in self.alive if machine.name == name), None)

    async def create(self, spec: MachineSpec) -> Machine:
        if self.mood is Mood.REFUSES:
            raise CloudError(f"{spec.name}: not enough stock")
        if self.mood is Mood.LOSES_THE_REQUEST:
            raise OutcomeUnknownError(f"{spec.name}: no answer within 30 s")
        self.rented += 1
        machine = Machine(f"id-{self.rented}", spec.name)
        self.alive.append(machine)
        if self.mood is Mood.LOSES_THE_ANSWER:
            raise OutcomeUnknownError(f"{spec.name}: no answer within 30 s")
        return machine

    async def look(self, machine_id: str) -> Observed:
        if self.mood is Mood.SILENT:
            return Observed(Presence.UNKNOWN, reason="no answer")
        found = next((machine for machine in self.alive if machine.id == machine_id), None)
        return Observed(Presence.THERE, found) if found else Observed(Presence.GONE)

    async def delete(self, machine_id: str) -> None:
        self._answer()
        self.alive = [machine for machine in self.alive if machine.id != machine_id]

    async def list(self, stack_id: str) -> Sequence[Machine]:
        return [machine for machine in self.alive if stack_id in machine.name]

    def _answer(self) -> None:
        if self.mood is Mood.SILENT:
            raise CloudError("no answer")


def ignore(_stage: str) -> None:
    pass


def ensure(cloud: ScriptedCloud, before: MachineState | None = None) -> MachineState:
    return asyncio.run(MachineResource(lambda _: cloud, look_pause_s=0.0).ensure(INPUTS, before, ignore))


def read(cloud: ScriptedCloud, state: MachineState) -> MachineState | None:
    return asyncio.run(MachineResource(lambda _: cloud, look_pause_s=0.0).read(state))


def test_a_machine_that_is_there_under_its_name_is_adopted() -> None:
    cloud = ScriptedCloud(alive=[Machine("id-0", INPUTS.name)])
    assert ensure(cloud).machine_id == "id-0"
    assert cloud.rented == 0


def test_a_machine_of_another_generation_is_not_adopted() -> None:
    cloud = ScriptedCloud(alive=[Machine("id-0", INPUTS.name.replace("g1", "g2"))])
    assert ensure(cloud).machine_id == "id-1"


def test_a_create_whose_answer_is_lost_is_followed_by_a_look_that_finds_it() -> None:
    cloud = ScriptedCloud(mood=Mood.LOSES_THE_ANSWER)
    assert ensure(cloud).machine_id == "id-1"
    assert cloud.rented == 1


def test_a_create_that_was_lost_is_not_repeated_but_reported() -> None:
    cloud = ScriptedCloud(mood=Mood.LOSES_THE_REQUEST)
    with pytest.raises(ProviderError, match="looks once more before it rents"):
        ensure(cloud)
    assert cloud.rented == 0


def test_a_cloud_that_does_not_answer_changes_nothing_in_the_state() -> None:
    cloud = ScriptedCloud()
    state = ensure(cloud)
    cloud.mood = Mood.SILENT
    seen = read(cloud, state)
    assert seen is not None
    assert (seen.condition, seen.machine_id) == (Condition.UNKNOWN, state.machine_id)


def test_a_machine_that_is_gone_is_said_to_be_gone() -> None:
    cloud = ScriptedCloud()
    state = ensure(cloud)
    cloud.alive.clear()
    assert read(cloud, state) is None


def test_a_create_that_was_cut_short_is_looked_for_by_name() -> None:
    begun = MachineState.model_validate(INPUTS.model_dump())
    assert read(ScriptedCloud(), begun) is None
    found = read(ScriptedCloud(alive=[Machine("id-7", INPUTS.name)]), begun)
    assert found is not None
    assert (found.condition, found.machine_id) == (Condition.RUNNING, "id-7")


moods = st.sampled_from([Mood.WELL, *Mood])


class MachineLife(RuleBasedStateMachine):
    """Deploys, refreshes and destroys in any order, killed at any moment, against a cloud in any mood."""

    @initialize()
    def begin(self) -> None:
        self.cloud = ScriptedCloud()
        self.state: MachineState | None = None

    @rule(mood=moods, killed=st.booleans())
    def deploy(self, mood: Mood, killed: bool) -> None:
        self.cloud.mood = mood
        try:
            state = ensure(self.cloud, self.state)
        except (CloudError, ProviderError):
            state = None
        if killed or state is None:
            # What was begun is written down before the provider is called (`engine.state.mended`).
            self.state = self.state or MachineState.model_validate(INPUTS.model_dump())
        else:
            self.state = state

    @rule(mood=moods)
    def refresh(self, mood: Mood) -> None:
        self.cloud.mood = mood
        if self.state:
            self.state = read(self.cloud, self.state)

    @rule()
    def the_cloud_takes_it_back(self) -> None:
        self.cloud.alive.clear()

    @rule(mood=moods)
    def destroy(self, mood: Mood) -> None:
        self.cloud.mood = mood
        if self.state:
            try:
                asyncio.run(MachineResource(lambda _: self.cloud).delete(self.state, ignore))
            except CloudError:
                return
            self.state = None

    @invariant()
    def never_two(self) -> None:
        assert len(self.cloud.alive) <= 1

    @invariant()
    def never_an_orphan(self) -> None:
        assert self.state is not None or not self.cloud.alive


TestMachineLife = MachineLife.TestCase


@pytest.mark.parametrize(("access", "replaced"), [(None, ("offer",)), (Access("192.0.2.10"), ())])
def test_more_gpus_of_a_machine_are_another_rental_but_the_same_machine_of_ones_own(
    access: Access | None, replaced: tuple[str, ...]
) -> None:
    before = INPUTS.model_copy(update={"access": access})
    more = INPUTS.model_copy(update={"access": access, "offer": replace(OFFER, gpus=2)})
    seen = Border(MachineResource(lambda _: ScriptedCloud())).compare(struct_of(before), struct_of(more))
    assert "offer" in seen.changed
    assert seen.replaces == replaced
