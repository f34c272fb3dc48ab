"""A machine for tests of what is done on it: who its user is, and how it is reached."""

from __future__ import annotations

from pathlib import Path

from infra.bootstrap.machine import Described, Machine, WantedImage, WantedWeights
from infra.clouds import HostKind
from infra.hosts import Unit, UnitState
from infra.hosts.remote import Connect, stack_folder
from infra.hosts.ssh import SshHost
from infra.ssh.connection import Connection
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.ssh.target import Target
from router.contract import forward_only
from tests.hosts import TestMachine

STACK = "abcdefgh"
PASSWORD = "correct horse $1 'battery'"


def unheard(_: str) -> None:
    pass


def target_of(vm: TestMachine, folder: Path, password: str = PASSWORD) -> Target:
    return Target("lp-abcdefgh-h1-g1", vm.address, vm.port, "ubuntu", folder / LOGIN, password)


def described(connection: Connection, folder: Path, stack: str = STACK) -> Machine:
    """A machine as steps see it, with a GPU, an image that is built there, and no weights to fetch."""
    public = public_line(ensure_key(folder, "tunnel-key"), f"letterpress-tunnel-{stack}")
    return Machine(
        connection=connection,
        kind=HostKind.VM,
        root=stack_folder(stack),
        cache=stack_folder(stack) / "cache",
        stack_id=stack,
        described=Described(gpus=1, disk_gib=0.01),
        image=WantedImage("letterpress-worker:1"),
        weights=WantedWeights(),
        tunnel_line=forward_only(public, (9101,)),
        progress=unheard,
    )


def over(connection: Connection) -> Connect:
    """For a host that is asked over one connection."""

    async def current() -> Connection:
        return connection

    return current


async def started(connection: Connection, stack_id: str) -> None:
    unit = Unit("kept", ("/bin/sleep", "600"))
    assert (await SshHost("h", stack_id, over(connection)).ensure(unit, unheard)).state is UnitState.RUNNING
