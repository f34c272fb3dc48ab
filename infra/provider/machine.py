"""Machine: something rented. It exists from the moment that its cloud gives an id.

Booting and everything on it is WorkerHost's. Its id is the name it is rented under, which is looked for
before anything is rented and after every doubt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from infra.clouds import (
    Access,
    Cloud,
    CloudError,
    LimitedError,
    Machine,
    MachineSpec,
    Offer,
    OutcomeUnknownError,
    Phase,
    Presence,
    TooEarlyError,
)
from infra.hosts import Progress
from infra.provider.prices import Prices
from infra.provider.resource import Condition, Found, Inputs, ProviderError
from infra.stack import CloudName, resolve

LOOKS = 3
"""After an order without an answer: what was rented may show up late in the provider's own list."""
LOOK_PAUSE_S = 5.0
DELETES = 12
"""A minute, with the pauses: no list was seen to lag so long."""
TELL_EVERY_S = 30.0
HALF_A_CENT = 0.005


class MachineInputs(Inputs):
    """`name` holds the stack's id, the machine and its generation; `image` is what a pod runs, else empty."""

    name: str
    cloud: CloudName
    offer: Offer
    image: str = ""
    access: Access | None = None

    @property
    def kept_in_place(self) -> frozenset[str]:
        """A machine that the user has already is the same one when more GPUs of it are described."""
        return frozenset({"offer"}) if self.access else frozenset()


class MachineState(MachineInputs, Found):
    """`machine_id` is the cloud's; `address` is empty until the cloud knows it, `phase` says how far it is."""

    machine_id: str = ""
    address: str = ""
    phase: Phase = Phase.RUNNING


@dataclass(frozen=True, slots=True)
class MachineResource:
    """`cloud` gives the cloud that a name means, `public_key` the stack's own SSH key; an image's `${NAME}` is
    looked up in `environ`; `fresh` is told the name of a machine that was rented just now. `prices` are shared by all
    machines of one deploy.

    `waits` says whether a delete waits for the end of a minimum run time, or fails with the hour.
    """

    cloud: Callable[[CloudName], Cloud]
    public_key: Callable[[], str] = lambda: ""
    waits: bool = True
    fresh: Callable[[str], None] = lambda _: None
    environ: Mapping[str, str] = field(default_factory=dict)
    look_pause_s: float = LOOK_PAUSE_S
    prices: Prices = field(default_factory=Prices, compare=False)
    inputs: type[MachineInputs] = MachineInputs
    state: type[MachineState] = MachineState
    replaced_by: frozenset[str] = frozenset({"name", "cloud", "offer", "image"})

    async def ensure(self, inputs: MachineInputs, _before: MachineState | None, progress: Progress) -> MachineState:
        """Nothing of a machine can change but what is known of it, so to repair one is to look, too."""
        cloud = self.cloud(inputs.cloud)
        while True:
            progress(f"looking for {inputs.name}")
            try:
                # How a machine is reached that the user has already may have changed; nothing is rented twice there.
                machine = None if inputs.access else await cloud.find(inputs.name)
                if machine and machine.phase is Phase.STOPPED:
                    progress("it has stopped; giving it back")
                    await cloud.delete(machine.id)
                    machine = None
                machine = machine or await self._rent(cloud, inputs, progress)
            except LimitedError as error:
                # Then with a look first: an order of a killed run may have been carried out meanwhile.
                await _wait(error.wait_s, f"{inputs.cloud} takes no more orders for now; going on", progress)
            else:
                return _state(inputs, machine)

    async def _rent(self, cloud: Cloud, inputs: MachineInputs, progress: Progress) -> Machine:
        offer = inputs.offer
        where = f" in {offer.region}" if offer.price else ""
        if not inputs.access:
            progress(f"renting {offer.gpu or 'the CPU'} ({offer.market}) from {inputs.cloud}{where}")
        image = resolve(inputs.image, self.environ, "pod_image")
        spec = MachineSpec(inputs.name, offer, public_key=self.public_key(), image=image, access=inputs.access)
        if offer.price:
            await self._require_price(cloud, inputs)
        if not inputs.access:
            self.fresh(inputs.name)  # whoever had this name before is gone, and its host key with it
        try:
            machine = await cloud.create(spec)
            if offer.price and machine.price > offer.price + HALF_A_CENT:
                progress(f"it costs ${machine.price:.2f} an hour, and was offered for ${offer.price:.2f}")
            return machine
        except OutcomeUnknownError as error:
            progress("the answer never came; looking whether it was rented")
            found = await self._looked_for(cloud, inputs.name)
            if found is None:
                raise ProviderError(
                    f"{inputs.name}: {error}. A look finds no machine of this name yet; run the same command "
                    "again, which looks once more before it rents"
                ) from error
            return found

    async def _require_price(self, cloud: Cloud, inputs: MachineInputs) -> None:
        """Raise ProviderError for an offer that costs more by now than was agreed to: the question may have been open
        for an hour. One that is not listed any more is left to the order itself."""
        agreed = inputs.offer
        now = await self.prices.of(cloud, agreed.id)
        if now and now.price > agreed.price + HALF_A_CENT:
            raise ProviderError(
                f"{inputs.name}: {now.gpu} ({now.market}) in {now.region} costs ${now.price:.2f} an hour by now, and "
                f"was offered for ${agreed.price:.2f}. It was not rented; deploy again to be shown the new price"
            )

    async def _looked_for(self, cloud: Cloud, name: str) -> Machine | None:
        for number in range(LOOKS):
            if number:
                await asyncio.sleep(self.look_pause_s)
            if found := await cloud.find(name):
                return found
        return None

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
        """Needs neither what runs on it nor the router. Raises ProviderError if its cloud does not let it go."""
        cloud = self.cloud(state.cloud)
        found = await cloud.find(state.name)
        for number in range(DELETES):
            if number:
                await asyncio.sleep(self.look_pause_s)
            for machine_id in sorted({state.machine_id, found.id if found else ""} - {""}):
                progress("giving it back")
                try:
                    await cloud.delete(machine_id)
                except TooEarlyError as error:
                    await self._until(error, state, progress)
            # Whatever was rented under this name is not left behind: the cloud itself says that it is gone.
            found = await cloud.find(state.name)
            if found is None:
                return
        raise ProviderError(
            f"{state.name}: {state.cloud} says that it was given back, {DELETES} times, and lists it still. It may "
            "be paid for: run the same command again, and look in its console if that does not help"
        )

    async def _until(self, error: TooEarlyError, state: MachineState, progress: Progress) -> None:
        """Wait for the end of a minimum run time. Raises ProviderError if that is not wanted."""
        left = max(0.0, (error.until - datetime.now(UTC)).total_seconds())
        costs = f"${left / 3600 * state.offer.price:.2f}"
        if not self.waits:
            raise ProviderError(
                f"{state.name}: {error}. Until then it costs {costs} more; destroy again after {error.until:%H:%M} "
                "UTC, or without --no-wait, which waits for that"
            )
        kept = f"kept until {error.until:%H:%M:%S} UTC, which costs {costs}; giving it back"
        await _wait(left + 1.0, kept, progress)


async def _wait(seconds: float, what: str, progress: Progress) -> None:
    """Wait, and say from time to time for how long still."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while (left := until - loop.time()) > 0:
        progress(f"{what} in {left:.0f} s")
        await asyncio.sleep(min(left, TELL_EVERY_S))


def _state(inputs: MachineInputs, machine: Machine) -> MachineState:
    return MachineState(
        name=inputs.name,
        cloud=inputs.cloud,
        offer=inputs.offer,
        access=inputs.access,
        image=inputs.image,
        condition=Condition.STOPPED if machine.phase is Phase.STOPPED else Condition.RUNNING,
        machine_id=machine.id,
        address=machine.address,
        phase=machine.phase,
    )


def _unknown(state: MachineState, reason: str) -> MachineState:
    return state.model_copy(update={"condition": Condition.UNKNOWN, "reason": reason})
