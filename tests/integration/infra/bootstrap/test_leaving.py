"""Leaving a machine: nothing of the stack stays, and what does is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.bootstrap.access import TunnelKey
from infra.bootstrap.facts import Disk
from infra.bootstrap.firewall import Firewall
from infra.bootstrap.image import Image
from infra.bootstrap.leave import leave_script
from infra.bootstrap.machine import Machine
from infra.bootstrap.step import go_through
from infra.bootstrap.weights import Folder
from infra.clouds import Access, HostKind, MachineSpec
from infra.clouds.hosts import HostsCloud, offers_of
from infra.hosts.remote import stack_folder
from infra.paths import StackPaths
from infra.provider.elsewhere import Elsewhere, ImageInputs, MachineFacts, leave_if_moved, take_leave
from infra.provider.site import Site
from infra.remains import listed
from infra.ssh.connection import Connection
from infra.ssh.keys import LOGIN
from infra.ssh.target import Patience
from infra.strays import end_strays
from tests.hosts import TestMachine
from tests.integration.infra.bootstrap.on_a_machine import PASSWORD, STACK, started, unheard
from tests.sshd import sshd

OTHERS = "yyyyyyyy"
"""Another stack on the same machine."""


async def test_a_stack_leaves_nothing_on_a_machine_and_what_stacks_share_goes_with_the_last(
    on: Callable[..., Machine], connection: Connection, vm: TestMachine
) -> None:
    keys = vm.file("/home/ubuntu/.ssh/authorized_keys")
    own = [line for line in keys.read_text().splitlines() if "letterpress-tunnel" not in line]
    for stack_id in (STACK, OTHERS):
        root = stack_folder(stack_id)
        line = f"restrict ssh-ed25519 AAAA letterpress-tunnel-{stack_id}"
        changed = on(stack_id=stack_id, root=root, cache=root / "cache", tunnel_line=line)
        await go_through((Disk(), Firewall(), TunnelKey(), Folder(), Image()), changed)
        await started(connection, stack_id)
    vm.inside("rm", "-rf", "/var/lib/letterpress/zzzzzzzz", "/var/lib/letterpress/podpodpo")  # of tests before

    for stack_id in (STACK, OTHERS):
        found = await connection.run("nft list table inet letterpress", "looking")
        assert "policy drop" in found, "the other stack still wants the firewall"
        await connection.run(leave_script(stack_id, "ubuntu", HostKind.VM, "letterpress-worker:1"), "leaving")
        found = await connection.run("ls /var/lib/letterpress /etc/systemd/system 2>&1 || :", "looking")
        assert stack_id not in found
    for gone in (
        "nft list table inet letterpress",
        "ls /etc/letterpress",
        "ls /etc/systemd/system/letterpress-firewall.service",
        "ls /var/lib/letterpress",
        "ls /run/letterpress",
        "docker image inspect letterpress-worker:1",
        "pgrep -x sleep -a | grep ' 600$'",
    ):
        assert (await connection.attempt(gone, "looking")).status != 0, gone
    left = [line for line in keys.read_text().splitlines() if "zzzzzzzz" not in line]
    assert left == own
    await connection.run(leave_script(STACK, "ubuntu", HostKind.VM, "letterpress-worker:1"), "leaving again")


def elsewhere(vm: TestMachine, folder: Path, address: str = "") -> Elsewhere:
    return Elsewhere(
        access=Access(address or vm.address, vm.port, "ubuntu", str(folder / LOGIN), "${SUDO}"),
        image=ImageInputs(tag="letterpress-worker:1"),
        facts=MachineFacts(gpus=1),
        admin_url="http://127.0.0.1:1",
    )


@pytest.fixture
def site(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("LETTERPRESS_RUN", str(tmp_path / "r"))
    made = Site(StackPaths.of("left", tmp_path / "home"), {"SUDO": PASSWORD})
    made.paths.create()
    (made.paths.root / "stack-id").write_text(f"{STACK}\n")
    yield made
    made.connections.close()


async def test_a_machine_that_does_not_answer_is_left_and_how_to_take_it_off_by_hand_is_said(
    site: Site, vm: TestMachine, folder: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await started(connection, STACK)
    monkeypatch.setattr("infra.provider.elsewhere.LEAVE", Patience(0.0))
    await take_leave(site, "h1", elsewhere(vm, folder, "127.0.0.2"), unheard)
    (kept,) = listed(site.paths)
    said = "\n".join(kept.lines)
    assert "h1 (127.0.0.2) still has what the stack put there" in said
    assert "does not answer" in said
    assert f"ssh -t -p {vm.port} ubuntu@127.0.0.2 sudo sh ./{kept.script.name}" in said
    assert "letterpress-abcdefgh-kept.service" in await connection.run("ls /etc/systemd/system", "looking")
    await connection.run("sh", "as a person would", stdin=kept.script, within_s=60)
    assert "letterpress-abcdefgh-" not in await connection.run("ls /etc/systemd/system", "looking")

    without = replace_environ(site, {})
    await take_leave(without, "h1", elsewhere(vm, folder), unheard)
    assert "SUDO" in listed(site.paths)[0].remains.why + listed(site.paths)[1].remains.why
    await take_leave(site, "h1", elsewhere(vm, folder), unheard)
    assert [one.remains.address for one in listed(site.paths)] == ["127.0.0.2"]


async def test_a_machine_of_ones_own_that_no_state_knows_of_is_left_too(
    site: Site, vm: TestMachine, folder: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO", PASSWORD)
    await started(connection, STACK)
    name, cloud = f"lp-{STACK}-interactive-1-g1", HostsCloud(site.paths)
    offer = offers_of({"h1": ("H100-SXM", 1, 80.0)})[0]
    await cloud.create(MachineSpec(name, offer, access=elsewhere(vm, folder).access))
    assert await end_strays(site.paths) == (name,)
    assert await cloud.find(name) is None
    assert listed(site.paths) == []
    assert f"letterpress-{STACK}-" not in await connection.run("ls /etc/systemd/system", "looking")


def replace_environ(site: Site, environ: dict[str, str]) -> Site:
    return replace(site, environ=environ, _connections=[])


async def test_a_new_address_is_the_same_machine_by_its_host_key_or_another_one_and_the_old_is_left(
    site: Site, vm: TestMachine, folder: Path, connection: Connection, tmp_path: Path
) -> None:
    await started(connection, STACK)
    await site.connections.to(site.target("h1", elsewhere(vm, folder).access), unheard, Patience(10))
    vm.inside("ip", "address", "add", f"{vm.network.address[:-2]}.3/24", "dev", vm.network.inner)
    try:
        moved = elsewhere(vm, folder, f"{vm.network.address[:-2]}.3")
        await leave_if_moved(site, "h1", elsewhere(vm, folder), moved, unheard)
        assert "letterpress-abcdefgh-kept.service" in await connection.run("ls /etc/systemd/system", "looking")
    finally:
        vm.inside("ip", "address", "del", f"{vm.network.address[:-2]}.3/24", "dev", vm.network.inner)

    async with sshd(tmp_path / "other") as other:
        access = replace(moved.access, address=other.address, port=other.port)
        await leave_if_moved(site, "h1", elsewhere(vm, folder), moved.model_copy(update={"access": access}), unheard)
    assert "letterpress-abcdefgh-kept.service" not in await connection.run("ls /etc/systemd/system", "looking")
    assert site.connections.pins.get("h1") is None
