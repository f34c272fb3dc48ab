"""The border between the engine's untyped structs and a resource's typed values.

Everything that the engine sends becomes pydantic models here, or a reason why it cannot; everything that
it is told is dumped from them. `infra.provider.server` handles the calls themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, JsonValue, ValidationError

from infra.hosts import Progress
from infra.provider.resource import Found, I, Resource, S

SIGNATURE = "4dabf18193072939515e22adb298388d"
"""Marks a struct of the engine's as a value of a special kind (pulumi's sdk/proto, "special signatures")."""
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - the mark, not the secret
CONDITION = "condition"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a property cannot be taken; `path` as Pulumi writes it (`workers[0].port`)."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed: properties by name, and those of them whose change makes it another resource."""

    changed: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Border(Generic[I, S]):
    """One resource, spoken to in structs."""

    resource: Resource[I, S]

    def check(self, news: Struct) -> tuple[Refusal, ...]:
        """Reasons to refuse these inputs; a secret is one, for the state would hold it."""
        values = MessageToDict(news)
        secrets = tuple(
            Refusal(name, "is a secret; resources hold names and fingerprints, never secrets")
            for name, value in values.items()
            if isinstance(value, dict) and value.get(SIGNATURE) == SECRET
        )
        if secrets:
            return secrets
        try:
            self.resource.inputs.model_validate(values)
        except ValidationError as error:
            return tuple(Refusal(_path(each["loc"]), each["msg"]) for each in error.errors())
        return ()

    def compare(self, olds: Struct, news: Struct) -> Difference:
        """What would have to be done: a bad condition is a change, too, and means repair."""
        before, after = self._state(olds), self._inputs(news)
        changed = [name for name in self.resource.inputs.model_fields if getattr(before, name) != getattr(after, name)]
        replaces = [name for name in changed if name in self.resource.replaced_by - after.kept_in_place]
        if not before.condition.good:
            changed.append(CONDITION)
        return Difference(tuple(changed), tuple(replaces))

    def foreseen(self, news: Struct) -> Struct:
        """What a preview shows, and what is known of a create that was cut short: the inputs."""
        return struct_of(self.resource.state.model_validate(self._inputs(news).model_dump()))

    async def ensure(self, news: Struct, olds: Struct | None, progress: Progress) -> Struct:
        before = self._state(olds) if olds is not None else None
        return struct_of(await self.resource.ensure(self._inputs(news), before, progress))

    async def read(self, properties: Struct) -> tuple[Struct, Struct] | None:
        """State and inputs as they are now, or None if it is gone."""
        state = await self.resource.read(self._state(properties))
        if state is None:
            return None
        own = {name: getattr(state, name) for name in self.resource.inputs.model_fields}
        return struct_of(state), struct_of(self.resource.inputs.model_validate(own))

    async def delete(self, properties: Struct, progress: Progress) -> None:
        await self.resource.delete(self._state(properties), progress)

    def _inputs(self, struct: Struct) -> I:
        return self.resource.inputs.model_validate(MessageToDict(struct))

    def _state(self, struct: Struct) -> S:
        return self.resource.state.model_validate(MessageToDict(struct))


def struct_of(model: Found | BaseModel) -> Struct:
    """A model as the engine stores it."""
    struct = Struct()
    values: Mapping[str, JsonValue] = model.model_dump(mode="json", exclude_none=True)
    struct.update(values)
    return struct


def _path(parts: tuple[str | int, ...]) -> str:
    """`("workers", 0, "port")` as `workers[0].port`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")
