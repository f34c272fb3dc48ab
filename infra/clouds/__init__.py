"""Clouds rent machines. One protocol; one module a provider; callers never ask which one they hold.

`infra.clouds.local` is this computer. The rules that keep machines from being orphaned are the callers'
(`infra.provider.machine`): every machine is created under a name that is looked for first, and a create
whose outcome is unknown is followed by a look, never by a second create.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from infra.errors import InfraError


class Market(StrEnum):
    ON_DEMAND = "on_demand"
    SPOT = "spot"


class Presence(StrEnum):
    """What a look at the cloud tells of a machine. `unknown` (no answer) changes nothing anywhere."""

    THERE = "there"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Offer:
    """Something the cloud sells now. `price` is US dollars an hour for the whole machine."""

    id: str
    cloud: str
    market: Market
    gpu: str
    gpus: int
    region: str
    price: float


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What to rent: `name` carries the stack's id, the resource and its generation, and is unique."""

    name: str
    offer: Offer
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A rented machine. `address`, `port` and `user` are empty until the cloud knows them."""

    id: str
    name: str
    address: str = ""
    port: int = 22
    user: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    presence: Presence
    machine: Machine | None = None
    reason: str = ""


class CloudError(InfraError):
    """A cloud refused or failed; the message names the machine and what to do next."""


class OutcomeUnknownError(CloudError):
    """A create was sent and its answer never came: look by name before anything else."""


class Cloud(Protocol):
    @property
    def name(self) -> str: ...

    async def offers(self) -> Sequence[Offer]: ...

    async def find(self, name: str) -> Machine | None:
        """The machine that is alive under exactly this name."""
        ...

    async def create(self, spec: MachineSpec) -> Machine:
        """Rent; returns as soon as the cloud has given an id, long before the machine answers."""
        ...

    async def look(self, machine_id: str) -> Observed: ...

    async def delete(self, machine_id: str) -> None:
        """Give back; gone is success. Needs neither the machine nor the router to answer."""
        ...

    async def list(self, stack_id: str) -> Sequence[Machine]:
        """Every machine alive whose name carries the stack's id."""
        ...
