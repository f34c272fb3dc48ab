"""Units on machines: by systemd's stand-in, in a pod, and as systemd itself reads them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from infra.bootstrap.firewall import UNIT_FILE
from infra.hosts import Unit, UnitState
from infra.hosts.container import ContainerHost
from infra.hosts.ssh import SshHost
from infra.hosts.systemd import unit_file
from infra.ssh.connect import connect
from infra.ssh.connection import Connection
from infra.ssh.pins import Pins
from infra.ssh.target import Patience
from tests.hosts import TestMachine
from tests.integration.infra.bootstrap.on_a_machine import STACK, over, target_of, unheard


async def kept(host: SshHost | ContainerHost, unit: Unit, vm: TestMachine) -> None:
    """Started as described, once, and again when it dies."""
    first = await host.ensure(unit, unheard)
    assert (first.state, first.fingerprint) == (UnitState.RUNNING, unit.fingerprint)
    assert (await host.ensure(unit, unheard)).pid == first.pid
    vm.inside("kill", "-9", str(first.pid))
    async with asyncio.timeout(30):
        while (await host.observe(unit.name)).pid in (first.pid, None):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_a_unit_is_kept_by_systemd_through_death_and_restart(
    connection: Connection, vm: TestMachine, folder: Path
) -> None:
    async def current() -> Connection:
        return await connect(target_of(vm, folder), Pins(folder / "known_hosts"), unheard, Patience(10))

    host = SshHost("h1", STACK, current)
    unit = Unit("keeper", ("/bin/sh", "-c", "echo '100% of $HOME'; exec sleep 600"), env={"SAID": 'a "b" $c %d'})
    await kept(host, unit, vm)
    vm.restart()
    assert (await host.observe("keeper")).fingerprint == unit.fingerprint
    other = replace(unit, argv=("/bin/sleep", "601"))
    assert (await host.ensure(other, unheard)).fingerprint == other.fingerprint
    await host.remove("keeper", unheard)
    assert await host.units() == {}


async def test_a_pods_units_are_kept_by_a_program_of_ours(connection: Connection, vm: TestMachine) -> None:
    host = ContainerHost("pod", "podpodpo", over(connection))
    unit = Unit("keeper", ("/bin/sh", "-c", "echo up; exec sleep 600"))
    await kept(host, unit, vm)
    async with asyncio.timeout(30):
        while (await host.tail("keeper", 5)).split() != ["up", "up"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await host.remove("keeper", unheard)
    assert (await host.observe("keeper")).state is UnitState.STOPPED


def test_systemd_itself_finds_nothing_wrong_with_our_unit_files(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here (make setup-test installs it where it may)")
    unit = Unit("w", ("/bin/echo", "a b", "$HOME", "100%", 'q"q'), env={"A": 'x "y" $z %d'}, reload_signal="HUP")
    files = {
        "letterpress-abc-w.service": unit_file(unit, "letterpress-abc-", PurePosixPath("/var")),
        "letterpress-firewall.service": UNIT_FILE.replace("ExecStart=nft", "ExecStart=/bin/echo"),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    paths = [str(tmp_path / name) for name in files]
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "letterpress" in line]
    assert ours == []
