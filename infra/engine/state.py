"""What the Pulumi state holds of a stack: its resources, and what a killed engine left half written.

Pure: an exported deployment in, values or a mended deployment out. Exporting and importing are the
engine's (`infra.engine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from infra.provider.resource import Condition, Found, Kind, name_of

Deployment = Mapping[str, JsonValue]
"""The engine's checkpoint in its own format (apitype.DeploymentV3)."""

CREATING = "creating"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A resource as it was last seen."""

    name: str
    kind: Kind
    condition: Condition
    reason: str = ""
    rented: str = ""
    """Of a machine, or an endpoint: the name that it is rented under."""


@dataclass(frozen=True, slots=True)
class StackState:
    """What the state holds of a stack."""

    resources: tuple[Recorded, ...] = ()


class _Resource(BaseModel):
    """The fields that matter here; all others are carried along as they are."""

    model_config = ConfigDict(extra="allow")

    urn: str
    id: str = ""
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    outputs: dict[str, JsonValue] = Field(default_factory=dict)
    pendingReplacement: bool = False  # noqa: N815 - the format's own name


class _Operation(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    resource: _Resource


class _Checkpoint(BaseModel):
    model_config = ConfigDict(extra="allow")

    resources: list[_Resource] = Field(default_factory=list)
    pending_operations: list[_Operation] = Field(default_factory=list)


def recorded(deployment: Deployment | None) -> StackState:
    """The stack's resources; a stack that was never brought up has no deployment."""
    resources = _Checkpoint.model_validate(deployment or {}).resources
    return StackState(tuple(_recorded(each, kind) for each in resources if (kind := Kind.of(each.urn))))


def mended(deployment: Deployment | None) -> Deployment | None:
    """The deployment without operations that were never finished; None if there is nothing to mend.

    Whatever an engine had begun to create when it died becomes a resource of which nothing is known but its
    description: the next look finds it or drops it, and a destroy ends it. Its id is its name, so nobody has
    to be asked for it. Finished or not, updates and deletions are seen by that next look, too.
    """
    checkpoint = _Checkpoint.model_validate(deployment or {})
    if not checkpoint.pending_operations:
        return None
    resources = list(checkpoint.resources)
    for operation in checkpoint.pending_operations:
        if operation.type == CREATING and Kind.of(operation.resource.urn):
            _put(resources, _begun(operation.resource))
    whole = checkpoint.model_copy(update={"resources": resources, "pending_operations": []})
    return whole.model_dump(mode="json", exclude_unset=True)


def _put(resources: list[_Resource], begun: _Resource) -> None:
    """In the place of its deleted predecessor if it replaces one, else behind all that it can depend on."""
    for index, resource in enumerate(resources):
        if resource.urn == begun.urn:
            if resource.pendingReplacement:
                resources[index] = begun
            return
    resources.append(begun)


def _begun(resource: _Resource) -> _Resource:
    outputs = {**resource.inputs, "condition": Condition.UNKNOWN.value, "reason": "its creation was cut short"}
    return resource.model_copy(update={"id": name_of(resource.urn), "outputs": outputs})


def _recorded(resource: _Resource, kind: Kind) -> Recorded:
    found = Found.model_validate(resource.outputs)
    rented = resource.outputs.get("name") if kind in (Kind.MACHINE, Kind.ENDPOINT) else ""
    return Recorded(name_of(resource.urn), kind, found.condition, found.reason, str(rented or ""))
