"""A step, and how a machine goes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from infra.bootstrap.machine import Place
from infra.clouds import HostKind
from infra.hosts import HostError

EVERYWHERE = frozenset({HostKind.VM, HostKind.CONTAINER})
VMS = frozenset({HostKind.VM})


P = TypeVar("P", bound=Place)
P_contra = TypeVar("P_contra", bound=Place, contravariant=True)


class StepError(HostError):
    """A machine did not become what it should; the message names it, the step, and what to try."""

    def __init__(self, machine: Place, step: str, what: str, advice: str) -> None:
        super().__init__(f"{machine.name}: {step}: {what}. {advice}")


@dataclass(frozen=True, slots=True)
class Wrong:
    """What a look found wrong, for a person. `final`: nothing that we do changes it, and `advice` says who can."""

    what: str
    advice: str = ""
    final: bool = False


class Step(Protocol[P_contra]):
    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> frozenset[HostKind]:
        """The kinds of host that it is for."""
        ...

    async def look(self, machine: P_contra, /) -> Wrong | None:
        """What is not as it should be; None if all is. One command, and nothing is changed."""
        ...

    async def act(self, machine: P_contra, /) -> None:
        """Put it right."""
        ...


async def go_through(steps: Sequence[Step[P]], machine: P) -> tuple[str, ...]:
    """Every step that is for this kind of host; the names of those that had something to do.

    Raises StepError, or SshError for what a command said.
    """
    acted = []
    for step in steps:
        if machine.kind not in step.kinds:
            continue
        machine.progress(step.name)
        wrong = await step.look(machine)
        if wrong is None:
            continue
        if not wrong.final:
            machine.progress(f"{step.name}: {wrong.what}")
            await step.act(machine)
            acted.append(step.name)
            wrong = await step.look(machine)
        if wrong is not None:
            raise StepError(machine, step.name, wrong.what, wrong.advice or "Deploy again; it goes on from here")
    return tuple(acted)
