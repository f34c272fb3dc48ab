"""A machine for tests of what is done on it: who its user is, and how it is reached."""

from __future__ import annotations

from pathlib import Path

from infra.hosts import Unit, UnitState
from infra.hosts.remote import stack_folder
from infra.hosts.ssh import SshHost
from infra.ssh.connection import Connection
from infra.ssh.keys import LOGIN
from infra.ssh.target import Target
from tests.hosts import TestMachine

STACK = "abcdefgh"


PASSWORD = "correct horse $1 'battery'"


ROOT = stack_folder(STACK)


def unheard(_: str) -> None:
    pass


def target_of(vm: TestMachine, folder: Path, password: str = PASSWORD) -> Target:
    return Target("lp-abcdefgh-h1-g1", vm.address, vm.port, "ubuntu", folder / LOGIN, password)


async def started(connection: Connection, stack_id: str) -> None:
    async def current() -> Connection:
        return connection

    unit = Unit("kept", ("/bin/sleep", "600"))
    assert (await SshHost("h", stack_id, current).ensure(unit, unheard)).state is UnitState.RUNNING
