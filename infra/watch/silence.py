"""Which machines answer nobody although their cloud lists them as running: the evidence, not what to do about it.

Both ways have to fail: the router's, to the workers, and watch's own, to the machine's sshd; and the machine must have
served before, for one that boots answers nobody either. Whether watch reaches any machine at all is looked at in the
same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from infra.clouds import Machine
from infra.files import replace_file
from router.contract import WorkerHealth, WorkerView

GREETS_WITHIN_S = 3.0
COMES_UP_WITHIN_S = 5400.0
"""Half an hour to boot and an hour for the weights are what a deploy waits. One that has not come up by then is idle:
it is paid for, works for nobody, and its pool may give it back."""
UNWATCHED_S = 60.0
"""Rounds are 15 s apart. Where nobody looked for longer (the computer slept, the cloud did not answer), what was silent
before may have answered between, and its silence begins anew."""

_JSON = TypeAdapter(tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Asked:
    """A machine, what the router says of its workers (nothing, if it knows none), and how long it is paid for."""

    machine: Machine
    workers: Sequence[WorkerView]
    age_s: float

    @property
    def reached(self) -> bool:
        return any(map(_reached, self.workers))

    @property
    def served(self) -> bool:
        """The router reaches a worker, and has since the machine was rented: a predecessor had workers of that name."""
        rented = self.machine.rented_at
        return rented is not None and any(_reached(view) and view.since >= rented for view in self.workers)


@dataclass(slots=True)
class Silence:
    """Kept between rounds, by the clouds' ids of machines: a name is rented again after a destroy.

    `file` keeps what has served over restarts: without it, what hung before would count as booting for an hour and a
    half. `since` is in seconds since the epoch; `greeting` are those whose sshd greeted in the last look, which asks
    only if something may be silent.
    """

    file: Path
    since: dict[str, float] = field(default_factory=dict)
    greeting: frozenset[str] = frozenset()
    _looked_at: float = -1e12
    _served: frozenset[str] | None = None

    async def note(self, machines: Sequence[Asked], now: float) -> None:
        """One look at every machine that has an address."""
        served = self._note_served(machines)
        unheard = {
            each.machine.id
            for each in machines
            if each.workers and not each.reached and (each.machine.id in served or each.age_s > COMES_UP_WITHIN_S)
        }
        answers = await asyncio.gather(*(_answers(each.machine) for each in machines)) if unheard else []
        self.greeting = frozenset(each.machine.id for each, up in zip(machines, answers, strict=False) if up)
        before = self.since if now - self._looked_at <= UNWATCHED_S else {}
        self.since = {machine: before.get(machine, now) for machine in unheard - self.greeting}
        self._looked_at = now

    def pause(self, every_s: float) -> float:
        """Seconds to the next look: what is silent is looked at often enough to know that it stays so."""
        return min(every_s, UNWATCHED_S / 4) if self.since else every_s

    def _note_served(self, machines: Sequence[Asked]) -> frozenset[str]:
        known = _read(self.file) if self._served is None else self._served
        new = {each.machine.id for each in machines if each.served} - known
        if new:
            known = (known & {each.machine.id for each in machines}) | new
            replace_file(self.file, _JSON.dump_json(tuple(sorted(known))) + b"\n")
        self._served = known
        return known


def _read(file: Path) -> frozenset[str]:
    """A file that cannot be read tells nothing: whatever serves is noted anew."""
    try:
        return frozenset(_JSON.validate_json(file.read_bytes()))
    except (FileNotFoundError, ValidationError):
        return frozenset()


def _reached(view: WorkerView) -> bool:
    return view.health not in (WorkerHealth.UNREACHABLE, WorkerHealth.UNKNOWN)


async def _answers(machine: Machine) -> bool:
    """Whether an sshd greets there (RFC 4253, 4.2). That a connection is taken says little: proxies on the way do that,
    and so does the kernel of a machine that does nothing else any more."""
    try:
        async with asyncio.timeout(GREETS_WITHIN_S):
            reader, writer = await asyncio.open_connection(machine.address, machine.port)
            try:
                return await reader.read(4) == b"SSH-"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
