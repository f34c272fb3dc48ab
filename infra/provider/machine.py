"""Machine: something rented. It exists from the moment that its cloud gives an id.

Booting and everything on it is WorkerHost's. Its id is the name it is rented under, which is looked for
before anything is rented and after every doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.clouds import Cloud, CloudError, Machine, MachineSpec, Offer, OutcomeUnknownError, Presence
from infra.hosts import Progress
from infra.provider.resource import Condition, Found, Inputs, ProviderError
from infra.stack import CloudName


class MachineInputs(Inputs):
    """`name` holds the stack's id, the machine and its generation."""

    name: str
    cloud: CloudName
    offer: Offer


class MachineState(MachineInputs, Found):
    """`machine_id` is the cloud's; `address` is empty until the cloud knows it."""

    machine_id: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class MachineResource:
    """`cloud` gives the cloud that a name means."""

    cloud: Callable[[CloudName], Cloud]
    inputs: type[MachineInputs] = MachineInputs
    state: type[MachineState] = MachineState
    replaced_by: frozenset[str] = frozenset({"name", "cloud", "offer"})

    async def ensure(self, inputs: MachineInputs, _before: MachineState | None, progress: Progress) -> MachineState:
        """Nothing of a machine can change but what is known of it, so to repair one is to look, too."""
        cloud = self.cloud(inputs.cloud)
        progress(f"looking for {inputs.name}")
        machine = await cloud.find(inputs.name)
        if machine is None:
            progress(f"renting {inputs.offer.gpu or 'the CPU'} ({inputs.offer.market}) from {inputs.cloud}")
            try:
                machine = await cloud.create(MachineSpec(inputs.name, inputs.offer))
            except OutcomeUnknownError as error:
                progress("the answer never came; looking whether it was rented")
                machine = await cloud.find(inputs.name)
                if machine is None:
                    raise ProviderError(
                        f"{inputs.name}: {error}. A look finds no machine of this name yet; run the same command "
                        "again, which looks once more before it rents"
                    ) from error
        return _state(inputs, machine)

    async def read(self, state: MachineState) -> MachineState | None:
        cloud = self.cloud(state.cloud)
        try:
            if state.machine_id:
                observed = await cloud.look(state.machine_id)
                if observed.presence is Presence.UNKNOWN:
                    return _unknown(state, observed.reason)
                if observed.machine:
                    return _state(state, observed.machine)
            # The name has the last word: a killed run may have rented it again, and not have written that down.
            machine = await cloud.find(state.name)
        except CloudError as error:
            return _unknown(state, str(error))
        return _state(state, machine) if machine else None

    async def delete(self, state: MachineState, progress: Progress) -> None:
        """Needs neither what runs on it nor the router."""
        cloud = self.cloud(state.cloud)
        found = await cloud.find(state.name)
        for machine_id in {state.machine_id, found.id if found else ""} - {""}:
            progress("giving it back")
            await cloud.delete(machine_id)


def _state(inputs: MachineInputs, machine: Machine) -> MachineState:
    return MachineState(
        name=inputs.name,
        cloud=inputs.cloud,
        offer=inputs.offer,
        condition=Condition.RUNNING,
        machine_id=machine.id,
        address=machine.address,
    )


def _unknown(state: MachineState, reason: str) -> MachineState:
    return state.model_copy(update={"condition": Condition.UNKNOWN, "reason": reason})
