"""A step, and how a machine goes through them: all looks in one command, as often as something was put right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from infra.bootstrap.machine import Place
from infra.clouds import HostKind
from infra.hosts import HostError
from infra.ssh.connection import TIMED_OUT, Done

ANSWERED = re.compile(r"^= .+: (\d+)\n", re.MULTILINE)
"""Ends what each look printed, and has the exit status of it."""
NOTHING = ":"
"""A look where there is nothing to be seen."""
LOOK_S = 60.0
"""For all looks together."""
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

    def look(self, machine: P_contra, /) -> str:
        """A script for `sh`, as root, that shows in a moment whether all is as it should be, and changes nothing."""
        ...

    def judge(self, machine: P_contra, seen: Done, /) -> Wrong | None:
        """What is not as it should be by what `look` showed; None if all is."""
        ...

    async def act(self, machine: P_contra, /) -> None:
        """Put it right."""
        ...


async def go_through(steps: Sequence[Step[P]], machine: P) -> tuple[str, ...]:
    """Every step that is for this kind of host; the names of those that had something to do.

    Raises StepError, or SshError for what a command said.
    """
    left = [step for step in steps if machine.kind in step.kinds]
    acted: list[str] = []
    while found := await _first_wrong(left, machine):
        place, wrong = found
        step = left[place]
        if wrong.final or step.name in acted:
            raise StepError(machine, step.name, wrong.what, wrong.advice or "Deploy again; it goes on from here")
        machine.progress(f"{step.name}: {wrong.what}")
        await step.act(machine)
        acted.append(step.name)
        left = left[place:]
    return tuple(acted)


async def _first_wrong(steps: Sequence[Step[P]], machine: P) -> tuple[int, Wrong] | None:
    """The place of the first step that is not right, and what is wrong."""
    machine.progress("looking at it")
    looks = (f"(\n{step.look(machine)}\n)\nprintf '\\n= {step.name}: %s\\n' $?" for step in steps)
    done = await machine.connection.attempt("\n".join(looks), "looking at it", within_s=LOOK_S)
    seen = answers(done.output)
    for place, (step, answer) in enumerate(zip(steps, seen, strict=False)):
        if wrong := step.judge(machine, answer):
            return place, wrong
    if len(seen) < len(steps):
        stuck = steps[len(seen)]
        how = f"did not end within {LOOK_S:g} s" if done.status == TIMED_OUT else f"ended with status {done.status}"
        raise StepError(machine, stuck.name, f"looking at it {how}", by_hand(done, stuck.look(machine)))
    return None


def by_hand(done: Done, script: str) -> str:
    """What to try where a look came to no end: what it said, if it said anything, and what it was."""
    said = (ANSWERED.split(done.output)[-1].strip() or done.errors.strip()).splitlines()
    last = f"The last that it said: {said[-1]}. " if said else ""
    shown = script.strip()
    apart = "\n" if "\n" in shown else " "
    return f"{last}Run this on the machine, as root, and see to what hangs or fails there:{apart}{shown}"


def answers(said: str) -> list[Done]:
    """What each look showed, of all that they printed; one that came to no end is not among them."""
    *parts, _ = ANSWERED.split(said)
    return [Done(int(status), output, "") for output, status in zip(parts[::2], parts[1::2], strict=True)]
