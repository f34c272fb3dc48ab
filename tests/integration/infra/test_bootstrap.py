"""Each step on a machine with a real sshd and a real firewall: what it puts right, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from infra.bootstrap.access import TunnelKey
from infra.bootstrap.facts import Disk, Gpus
from infra.bootstrap.firewall import Firewall, Seen, parse, rules
from infra.bootstrap.image import Image
from infra.bootstrap.leave import leave_script
from infra.bootstrap.machine import Described, Machine, WantedImage, WantedWeights
from infra.bootstrap.order import WORKER_STEPS
from infra.bootstrap.step import StepError, go_through
from infra.bootstrap.weights import Folder
from infra.clouds import Access, HostKind
from infra.hosts import Unit, UnitState
from infra.hosts.container import ContainerHost
from infra.hosts.remote import stack_folder
from infra.hosts.ssh import SshHost
from infra.hosts.systemd import unit_file
from infra.paths import StackPaths
from infra.provider.elsewhere import Elsewhere, ImageInputs, MachineFacts, leave_if_moved, take_leave
from infra.provider.site import Site
from infra.remains import listed
from infra.ssh.connect import connect
from infra.ssh.connection import Connection
from infra.ssh.errors import CommandError, SudoRefusedError
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.ssh.pins import Pins
from infra.ssh.target import Patience, Target
from router.contract import forward_only
from tests.hosts import TestMachine, machine
from tests.sshd import sshd

STACK = "abcdefgh"
PASSWORD = "correct horse $1 'battery'"
ROOT = stack_folder(STACK)


def unheard(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def vm(folder: Path) -> Iterator[TestMachine]:
    """One machine for all of these tests, with a user whom sudo asks for a password."""
    key = ensure_key(folder, LOGIN)
    with machine(public_line(key, "operator"), user="ubuntu", password=PASSWORD) as running:
        yield running


def target_of(vm: TestMachine, folder: Path, password: str = PASSWORD) -> Target:
    return Target("lp-abcdefgh-h1-g1", vm.address, vm.port, "ubuntu", folder / LOGIN, password)


@pytest.fixture
async def connection(vm: TestMachine, folder: Path) -> AsyncIterator[Connection]:
    vm.told(gpus=[["NVIDIA H100 80GB HBM3", 81559]], registry="", image="")
    made = await connect(target_of(vm, folder), Pins(folder / "known_hosts"), unheard, Patience(10))
    yield made
    made.close()


@pytest.fixture
def on(connection: Connection, folder: Path) -> Callable[..., Machine]:
    """The machine as steps see it; settings change what is described."""

    def described(**changed: object) -> Machine:
        public = public_line(ensure_key(folder, "tunnel-key"), f"letterpress-tunnel-{STACK}")
        made = Machine(
            connection=connection,
            kind=HostKind.VM,
            root=ROOT,
            cache=ROOT / "cache",
            stack_id=STACK,
            described=Described(gpus=1, disk_gib=0.01),
            image=WantedImage("letterpress-worker:1"),
            weights=WantedWeights(),
            tunnel_line=forward_only(public, (9101,)),
            progress=unheard,
        )
        return replace(made, **changed)  # type: ignore[arg-type]  # named by Machine's own fields

    return described


async def test_a_bare_machine_goes_through_all_steps_and_then_there_is_nothing_to_do(
    on: Callable[..., Machine], vm: TestMachine
) -> None:
    acted = await go_through(WORKER_STEPS, on())
    assert {"firewall", "tunnel key", "weights folder", "image"} <= set(acted)
    begun = time.monotonic()
    assert await go_through(WORKER_STEPS, on()) == ()
    assert (time.monotonic() - begun) / len(WORKER_STEPS) < 1
    line = vm.file("/home/ubuntu/.ssh/authorized_keys").read_text().splitlines()[-1]
    assert line.startswith('restrict,port-forwarding,permitopen="127.0.0.1:9101" ssh-ed25519 ')


async def test_nothing_but_ssh_comes_through_the_firewall_also_after_a_restart(
    on: Callable[..., Machine], vm: TestMachine, folder: Path
) -> None:
    await go_through((Firewall(),), on())
    vm.restart()
    server = "import socket,time; s=socket.create_server(('0.0.0.0', 7777)); time.sleep(60)"
    made = await connect(target_of(vm, folder), Pins(folder / "known_hosts"), unheard, Patience(10))
    try:
        await made.run(f'setsid python3 -c "{server}" >/dev/null 2>&1 &', "listening")
        async with asyncio.timeout(20):
            while "7777" not in await made.run("ss -Hltn", "looking"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        socket.create_connection((vm.address, 22), 5).close()
        with pytest.raises(TimeoutError):
            socket.create_connection((vm.address, 7777), 1)
        listed = await made.run("nft list table inet letterpress", "looking")
        assert "udp dport { 68, 546 } accept" in listed, "or the machine loses its address, of either kind"
        await made.run("nft delete table inet letterpress", "opening it")
        socket.create_connection((vm.address, 7777), 5).close()
    finally:
        made.close()


@pytest.mark.parametrize("kept", [False, True])
async def test_rules_that_shut_us_out_are_taken_back_though_our_session_ends(
    kept: bool, on: Callable[..., Machine], vm: TestMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong port is opened, as a bug of ours would; then nothing that we started on the machine lives on."""
    machine = on()
    await machine.connection.run(
        "rm -f /etc/letterpress/firewall.nft; nft delete table inet letterpress 2>&1 || :", "beginning"
    )
    if kept:
        await go_through((Firewall(),), machine)
    wrong = rules((2222,))
    monkeypatch.setattr("infra.bootstrap.firewall.rules", lambda _: wrong)
    monkeypatch.setattr("infra.bootstrap.firewall.ROLLBACK_S", 4)
    monkeypatch.setattr("infra.ssh.connect.ANSWER_S", 1.0)
    with pytest.raises(StepError, match="nothing comes through its new rules"):
        await go_through((Firewall(),), machine)
    machine.connection.close()
    vm.inside("bash", "-c", "pkill -9 -x sleep; pkill -9 -x sudo; pkill -9 -x sh; :")
    monkeypatch.undo()
    async with asyncio.timeout(30):
        while (said := vm.inside("sh", "-c", "nft list table inet letterpress 2>&1 || :")) and "2222" in said:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert ("tcp dport 22 accept" in said) is kept
    assert ("policy drop" in said) is kept


async def test_every_port_that_sshd_listens_on_stays_open(on: Callable[..., Machine], vm: TestMachine) -> None:
    daemon = "/usr/sbin/sshd -f /dev/null -h /etc/ssh/standin_key -o PidFile=/run/second-sshd"
    vm.inside("sh", "-c", f"{daemon} -o ListenAddress=0.0.0.0:2200 -o ListenAddress=127.0.0.1:2201")
    try:
        assert await go_through((Firewall(),), on()) == ("firewall",)
        listed = await on().connection.run("nft list table inet letterpress", "looking")
        assert "tcp dport { 22, 2200 } accept" in listed
        assert await go_through((Firewall(),), on()) == ()
    finally:
        vm.inside("sh", "-c", "kill $(cat /run/second-sshd)")
    assert await go_through((Firewall(),), on()) == ("firewall",)


def test_where_systemd_holds_sshds_port_it_is_found_there() -> None:
    said = """\
LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=4,fd=14))
LISTEN 0 128 127.0.0.1:6010 0.0.0.0:* users:(("sshd",pid=9,fd=7))
LISTEN 0 4096 *:8080 *:* users:(("python3",pid=12,fd=3))
Id=ssh.socket
Listen=0.0.0.0:2222 (Stream)
Listen=[::]:2222 (Stream)
ActiveState=active
UnitFileState=enabled

Id=sshd.socket
Listen=[::]:2200 (Stream)
ActiveState=inactive
UnitFileState=disabled

Id=letterpress-firewall.service
ActiveState=active
UnitFileState=enabled

rules 0123456789abcdef
drops 1
trials 0
"""
    assert parse(said) == Seen(frozenset({2222}), "0123456789abcdef", sound=True)


@pytest.mark.parametrize(
    ("told", "described", "said"),
    [
        ({"gpus": None}, Described(1), "no NVIDIA driver answers"),
        ({}, Described(2), r"2 GPU\(s\) are described and 1 answer"),
        ({}, Described(1, gpu="A100"), "A100 is described and it has NVIDIA H100 80GB HBM3"),
        (
            {"gpus": [["NVIDIA L4", 23034]]},
            Described(1, gpu_memory_gib=80),
            "80 GiB are described and NVIDIA L4 has 22",
        ),
    ],
)
async def test_a_machine_that_will_not_do_is_refused_before_anything_is_fetched(
    told: dict[str, object], described: Described, said: str, on: Callable[..., Machine], vm: TestMachine
) -> None:
    vm.told(**told)
    with pytest.raises(StepError, match=said) as caught:
        await go_through((Gpus(),), on(described=described))
    assert str(caught.value).startswith(f"lp-abcdefgh-h1-g1 ({vm.address}): GPUs: ")


async def test_too_little_disk_is_said_in_figures(on: Callable[..., Machine]) -> None:
    other = PurePosixPath("/var/lib/letterpress/zzzzzzzz")
    with pytest.raises(StepError, match="GiB are free on /var/lib/letterpress, and 1e"):
        await go_through((Disk(),), on(root=other, described=Described(1, disk_gib=1e7)))


async def test_a_registry_that_refuses_is_quoted_with_the_settings_to_look_at(
    on: Callable[..., Machine], vm: TestMachine
) -> None:
    vm.told(registry="refuses")
    image = WantedImage("ghcr.io/acme/worker:2", pull="ghcr.io/acme/worker:2")
    with pytest.raises(CommandError) as caught:
        await go_through((Image(),), on(image=image))
    said = str(caught.value)
    assert "pulling ghcr.io/acme/worker:2 failed" in said
    assert "pull access denied" in said
    assert "image.username" in said
    vm.told(registry="")
    assert await go_through((Image(),), on(image=image)) == ("image",)


async def test_a_registrys_password_goes_by_standard_input_and_stays_nowhere(
    on: Callable[..., Machine], vm: TestMachine
) -> None:
    vm.told(registry_password="pull-secret-1")
    image = WantedImage("ghcr.io/a/w:3", pull="ghcr.io/a/w:3", username="acme", password="pull-secret-1")
    await go_through((Image(),), on(image=image))
    assert "pull-secret-1" not in vm.inside(
        "sh", "-c", "grep -rs pull-secret-1 /run /var /home /root/.docker | grep -v standin || :"
    )


async def test_a_saved_image_is_copied_and_called_as_wanted(on: Callable[..., Machine], tmp_path: Path) -> None:
    archive = tmp_path / "worker.tar"
    archive.write_bytes(b"layers" * 100_000)
    image = WantedImage("letterpress-worker:saved", archive=archive)
    assert await go_through((Image(),), on(image=image)) == ("image",)


async def test_without_a_yes_to_the_weights_licence_nothing_at_all_is_done(on: Callable[..., Machine]) -> None:
    with pytest.raises(StepError, match="nobody has said yes to the licence of acme/weights"):
        await go_through(WORKER_STEPS, on(weights=WantedWeights("acme/weights"), described=Described(9)))


async def test_another_stacks_or_ones_own_keys_are_left_in_authorized_keys(
    on: Callable[..., Machine], vm: TestMachine
) -> None:
    file = vm.file("/home/ubuntu/.ssh/authorized_keys")
    before = file.read_text()
    others = on(stack_id="zzzzzzzz", tunnel_line="restrict ssh-ed25519 AAAA letterpress-tunnel-zzzzzzzz")
    await go_through((TunnelKey(),), others)
    changed = replace(others, tunnel_line="restrict ssh-ed25519 BBBB letterpress-tunnel-zzzzzzzz")
    await go_through((TunnelKey(),), changed)
    assert file.read_text() == before + changed.tunnel_line + "\n"


@pytest.mark.parametrize(
    ("password", "said"), [("", "sudo asks ubuntu for a password"), ("wrong", "did not take the password")]
)
async def test_sudo_that_does_not_let_us_is_told_apart(password: str, said: str, vm: TestMachine, folder: Path) -> None:
    with pytest.raises(SudoRefusedError, match=said):
        await connect(target_of(vm, folder, password), Pins(folder / "known_hosts"), unheard, Patience(10))


async def test_the_sudo_password_is_in_no_process_list_and_no_log(connection: Connection, vm: TestMachine) -> None:
    listing = await connection.run("cat /proc/*/cmdline /proc/*/environ 2>/dev/null | tr '\\0' '\\n'", "looking")
    assert "correct horse" not in listing
    assert "correct horse" not in vm.inside(
        "sh", "-c", "grep -rs 'correct horse' /var/log /home /root/.bash_history || :"
    )


async def test_a_unit_is_kept_by_systemd_through_death_and_restart(
    connection: Connection, vm: TestMachine, folder: Path
) -> None:
    async def current() -> Connection:
        return await connect(target_of(vm, folder), Pins(folder / "known_hosts"), unheard, Patience(10))

    host = SshHost("h1", STACK, current)
    unit = Unit("keeper", ("/bin/sh", "-c", "echo '100% of $HOME'; exec sleep 600"), env={"SAID": 'a "b" $c %d'})
    first = await host.ensure(unit, unheard)
    assert (first.state, first.fingerprint) == (UnitState.RUNNING, unit.fingerprint)
    assert (await host.ensure(unit, unheard)).pid == first.pid
    vm.inside("kill", "-9", str(first.pid))
    async with asyncio.timeout(30):
        while (await host.observe("keeper")).pid in (first.pid, None):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    vm.restart()
    assert (await host.observe("keeper")).fingerprint == unit.fingerprint
    other = replace(unit, argv=("/bin/sleep", "601"))
    assert (await host.ensure(other, unheard)).fingerprint == other.fingerprint
    await host.remove("keeper", unheard)
    assert await host.units() == {}


async def test_a_pods_units_are_kept_by_a_program_of_ours(connection: Connection, vm: TestMachine) -> None:
    async def current() -> Connection:
        return connection

    host = ContainerHost("pod", "podpodpo", current)
    unit = Unit("keeper", ("/bin/sh", "-c", "echo up; exec sleep 600"))
    first = await host.ensure(unit, unheard)
    assert (first.state, first.fingerprint) == (UnitState.RUNNING, unit.fingerprint)
    assert (await host.ensure(unit, unheard)).pid == first.pid
    vm.inside("kill", "-9", str(first.pid))
    async with asyncio.timeout(30):
        while (await host.observe("keeper")).pid in (first.pid, None):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    async with asyncio.timeout(30):
        while (await host.tail("keeper", 5)).split() != ["up", "up"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await host.remove("keeper", unheard)
    assert (await host.observe("keeper")).state is UnitState.STOPPED


def test_systemd_itself_finds_nothing_wrong_with_our_unit_files(tmp_path: Path) -> None:
    import shutil  # noqa: PLC0415
    import subprocess  # noqa: PLC0415

    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here (make setup-test installs it where it may)")
    from infra.bootstrap.firewall import UNIT_FILE  # noqa: PLC0415

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


OTHERS = "yyyyyyyy"
"""Another stack on the same machine."""


async def started(connection: Connection, stack_id: str) -> None:
    async def current() -> Connection:
        return connection

    unit = Unit("kept", ("/bin/sleep", "600"))
    assert (await SshHost("h", stack_id, current).ensure(unit, unheard)).state is UnitState.RUNNING


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
