"""Machines that the user already has, as a cloud: nothing is rented, and nothing costs.

What is kept of a machine is a record in the stack's folder, that it was taken under its name. So it is there or gone
without being asked: a stack can be destroyed while its machines are switched off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.clouds import Ability, Access, CloudError, HostKind, Machine, MachineSpec, Market, Observed, Offer, Presence
from infra.files import replace_file
from infra.paths import StackPaths
from infra.ssh.pins import Pins

NAME = "hosts"


@dataclass(frozen=True, slots=True)
class HostsCloud:
    """Records under the stack's own folder."""

    paths: StackPaths

    @property
    def name(self) -> str:
        return NAME

    @property
    def ability(self) -> Ability:
        return Ability(
            rents=False, markets=frozenset(Market), host=HostKind.VM, cannot=("make a machine that you do not have",)
        )

    async def offers(self) -> Sequence[Offer]:
        """None of its own: a stack file says which machines there are (`offers_of`)."""
        return ()

    async def find(self, name: str) -> Machine | None:
        return _read(self._record(name))

    async def create(self, spec: MachineSpec) -> Machine:
        """Take the machine that the offer names."""
        if spec.access is None:
            raise CloudError(f"{spec.name}: the stack file's `hosts` do not say how it is reached")
        file = self._record(spec.name)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, (json.dumps(asdict(spec.access), indent=2) + "\n").encode())
        machine = _read(file)
        assert machine is not None  # noqa: S101 - just written
        return machine

    async def look(self, machine_id: str) -> Observed:
        machine = _read(self._record(machine_id))
        return Observed(Presence.THERE, machine) if machine else Observed(Presence.GONE)

    async def delete(self, machine_id: str) -> None:
        """Let it go, and forget its host key with it."""
        Pins(self.paths.known_hosts).forget(machine_id)
        self._record(machine_id).unlink(missing_ok=True)

    def access(self, name: str) -> Access | None:
        """How the machine that was taken under that name is reached; None if none was."""
        return _access(self._record(name))

    async def list(self, stack_id: str) -> Sequence[Machine]:
        files = sorted((self.paths.root / NAME).glob("*.json"))
        return [machine for file in files if stack_id in file.stem and (machine := _read(file))]

    def _record(self, name: str) -> Path:
        return self.paths.root / NAME / f"{name}.json"


def offers_of(gpus: Mapping[str, tuple[str, int, float]]) -> tuple[Offer, ...]:
    """Each host of a stack file as an offer in both markets, for nobody takes it back; by name its GPUs' model, their
    number and the memory of one."""
    return tuple(
        Offer(f"{host}.{market}", NAME, market, model, count, host, price=0.0, memory_gib=memory)
        for host, (model, count, memory) in gpus.items()
        for market in Market
    )


def _read(file: Path) -> Machine | None:
    access = _access(file)
    return Machine(file.stem, file.stem, access.address, access.port, access.user) if access else None


def _access(file: Path) -> Access | None:
    try:
        kept = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    return Access(**kept | {"kind": HostKind(kept.get("kind", HostKind.VM))})
