"""Clouds rent machines. One protocol; one module a provider; callers never ask which one they hold.

`infra.clouds.local` is this computer, `spheron` and `runpod` rent. Every fact of a provider stands in its one
module; what the others lack is data (`Ability`). The rules that keep machines from being orphaned are the
callers' (`infra.provider.machine`): every machine is created under a name that is looked for first, and a
create whose outcome is unknown is followed by a look, never by a second create.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
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


class Phase(StrEnum):
    """How far a machine that is there has come."""

    BOOTING = "booting"  # rented and paid for, not to be reached yet; it may have an address already
    RUNNING = "running"
    STOPPED = "stopped"  # paid for, at least in part, and it will not come back by itself


class HostKind(StrEnum):
    """What can be run on a machine once it is reached."""

    LOCAL = "local"  # processes of this computer
    VM = "vm"  # a whole machine: docker and systemd
    CONTAINER = "container"  # a pod that is the worker's image already: no docker, no firewall, no units


@dataclass(frozen=True, slots=True)
class Ability:
    """What a cloud can and cannot do. `cannot` says the latter for people, a clause each."""

    rents: bool
    markets: frozenset[Market]
    host: HostKind
    cannot: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """How a machine is reached through SSH. `key` is a private key's file as the stack file names it, empty for the
    stack's own; `sudo_password` is a reference, `${NAME}`, empty where sudo asks nothing."""

    address: str
    port: int = 22
    user: str = "root"
    key: str = ""
    sudo_password: str = ""
    kind: HostKind = HostKind.VM


@dataclass(frozen=True, slots=True)
class Offer:
    """Something the cloud sells now. `price` is US dollars an hour for the whole machine.

    `memory_gib` is one GPU's; `minimum_s` is how long it is paid for at the least. `terms` are what the cloud
    wants to read again in an order, all from one offer: opaque to everybody but its own module.
    """

    id: str
    cloud: str
    market: Market
    gpu: str
    gpus: int
    region: str
    price: float
    memory_gib: float = 0.0
    minimum_s: float = 0.0
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What to rent: `name` carries the stack's id, the resource and its generation, and is unique.

    `public_key` lets us in (OpenSSH's one line). `image` is what a machine that is a container runs.
    """

    name: str
    offer: Offer
    labels: tuple[tuple[str, str], ...] = ()
    access: Access | None = None
    """How the machine is reached that the user has already; None where the cloud itself will say."""
    public_key: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A rented machine. `address`, `port` and `user` are empty until the cloud knows them.

    `price` is US dollars an hour, `rented_at` when it began to be paid for, where the cloud says so.
    """

    id: str
    name: str
    address: str = ""
    port: int = 22
    user: str = ""
    phase: Phase = Phase.RUNNING
    price: float = 0.0
    rented_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """`taken_back` says of a machine that is gone that the provider ended it, and nobody here."""

    presence: Presence
    machine: Machine | None = None
    reason: str = ""
    taken_back: bool = False


class CloudError(InfraError):
    """A cloud refused or failed; the message names the machine and what to do next."""


class OutcomeUnknownError(CloudError):
    """A create was sent and its answer never came: look by name before anything else."""


class NoStockError(CloudError):
    """The offer that was to be taken is sold out, whatever it said of itself; it is not offered for a while."""


class LimitedError(CloudError):
    """The cloud takes no more requests just now, and did nothing; `wait_s` seconds from now it does."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class TooEarlyError(CloudError):
    """A machine cannot be given back before `until` (UTC), and is paid for until then."""

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class Cloud(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def ability(self) -> Ability: ...

    async def offers(self) -> Sequence[Offer]: ...

    async def find(self, name: str) -> Machine | None:
        """The machine that is alive under exactly this name."""
        ...

    async def create(self, spec: MachineSpec) -> Machine:
        """Rent; returns as soon as the cloud has given an id, long before the machine answers.

        Raises NoStockError, LimitedError or CloudError when nothing was rented, OutcomeUnknownError when
        something may have been.
        """
        ...

    async def look(self, machine_id: str) -> Observed: ...

    async def delete(self, machine_id: str) -> None:
        """Give back; gone is success. Needs neither the machine nor the router to answer.

        Raises TooEarlyError before the end of a minimum run time.
        """
        ...

    async def list(self, stack_id: str) -> Sequence[Machine]:
        """Every machine alive whose name carries the stack's id."""
        ...
