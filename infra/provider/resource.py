"""What a resource of this provider is: typed inputs, a typed state, and what one can do with it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from infra.errors import InfraError
from infra.hosts import Progress, UnitState, UnitStatus


class Kind(StrEnum):
    """The provider's resources, by Pulumi's name for their type."""

    MACHINE = "letterpress:index:Machine"
    WORKER_HOST = "letterpress:index:WorkerHost"
    ROUTER_HOST = "letterpress:index:RouterHost"
    REGISTRATION = "letterpress:index:Registration"
    ENDPOINT = "letterpress:index:Endpoint"

    @property
    def short(self) -> str:
        return self.rpartition(":")[2]

    @classmethod
    def of(cls, urn: str) -> Kind | None:
        """The kind of the resource behind `urn:pulumi:stack::project::type::name`; None if it is not ours."""
        parts = urn.split("::")
        return next((kind for kind in cls if len(parts) == 4 and kind == parts[2]), None)


def name_of(urn: str) -> str:
    """The name that the program gave to the resource. It is its id, too."""
    return urn.rpartition("::")[2]


class Condition(StrEnum):
    """What the last look found. Anything but the first two makes the next deploy repair the resource."""

    RUNNING = "running"  # as described, and serving
    REGISTERED = "registered"
    NOT_READY = "not_ready"  # runs, and does not serve (yet)
    STOPPED = "stopped"
    ORPHANED = "orphaned"  # the main process is gone, children of it are left
    DIFFERENT = "different"  # something runs, and not what is described
    UNKNOWN = "unknown"  # no answer; nothing is concluded from that

    @property
    def good(self) -> bool:
        return self in (Condition.RUNNING, Condition.REGISTERED)


class Inputs(BaseModel):
    """What a resource is described by. Plain values: no secret, and nothing of another resource's outputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def kept_in_place(self) -> frozenset[str]:
        """Those of `replaced_by` whose change leaves this one what it is."""
        return frozenset()


class Found(BaseModel):
    """What a look adds to the inputs; mixed into each resource's state, which thereby is its whole record.

    A state is read back by later versions of this code, so what they do not know is no error.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    condition: Condition = Condition.UNKNOWN
    reason: str = ""


class UnitSeen(BaseModel):
    """One unit as it was last seen, for people and for `make status`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    condition: Condition
    pid: int | None = None
    since: datetime | None = None

    @classmethod
    def of(cls, name: str, status: UnitStatus, fingerprint: str) -> UnitSeen:
        """`fingerprint` is the described unit's."""
        condition = Condition(status.state.value)
        if status.state is UnitState.RUNNING and status.fingerprint != fingerprint:
            condition = Condition.DIFFERENT
        return cls(name=name, condition=condition, pid=status.pid, since=status.since)


I = TypeVar("I", bound=Inputs)  # noqa: E741 - the protocol reads best with one letter each
S = TypeVar("S", bound=Found)


class Resource(Protocol[I, S]):
    """One kind of thing that the Pulumi engine can create, read, update and delete through us."""

    @property
    def inputs(self) -> type[I]: ...

    @property
    def state(self) -> type[S]: ...

    @property
    def replaced_by(self) -> frozenset[str]:
        """Inputs whose change makes it another thing; a change of any other is an update."""
        ...

    async def ensure(self, inputs: I, before: S | None, progress: Progress, /) -> S:
        """Make it as described: adopt what is there under its id, repair what died, create what is missing.

        `before` is the last known state, None for a create. IncompleteError if it exists and does not serve.
        """
        ...

    async def read(self, state: S, /) -> S | None:
        """Look; None says that it is gone for certain."""
        ...

    async def delete(self, state: S, progress: Progress, /) -> None:
        """End it; gone is success."""
        ...


class ProviderError(InfraError):
    """A resource could not be brought about; the message names it and the next thing to try."""


class IncompleteError(ProviderError):
    """The resource exists in part and must be remembered: `state` is what there is of it."""

    def __init__(self, message: str, state: Found) -> None:
        super().__init__(message)
        self.state = state


def worst(conditions: list[Condition]) -> Condition:
    """The condition of a whole by those of its parts: the first that is not good, or running."""
    return next((condition for condition in conditions if not condition.good), Condition.RUNNING)
