"""Each step on a machine with a real sshd and a real firewall: what it puts right, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from subprocess import CalledProcessError

import pytest

from infra.bootstrap.access import TunnelKey
from infra.bootstrap.facts import Disk, Download, Gpus
from infra.bootstrap.image import Image
from infra.bootstrap.machine import Described, Machine, WantedImage, WantedWeights
from infra.bootstrap.order import WORKER_STEPS
from infra.bootstrap.step import EVERYWHERE, VMS, StepError, Wrong, by_hand, go_through
from infra.clouds import HostKind
from infra.ssh.connect import connect
from infra.ssh.connection import Connection, Done
from infra.ssh.errors import CommandError, SudoRefusedError
from infra.ssh.pins import Pins
from infra.ssh.target import Patience
from tests.hosts import TestMachine, without_python
from tests.integration.infra.bootstrap.on_a_machine import target_of, unheard


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


async def test_all_looks_are_one_command_and_one_more_for_each_step_that_acted(
    on: Callable[..., Machine], vm: TestMachine, folder: Path
) -> None:
    await go_through(WORKER_STEPS, on())
    said: list[str] = []
    connection = await connect(target_of(vm, folder), Pins(folder / "known_hosts"), unheard, Patience(10), said.append)
    try:
        await go_through(WORKER_STEPS, on(connection=connection))
        assert [line for line in said if line.startswith("# ")] == ["# looking at it"]
        assert "= firewall: 0" in said
        said.clear()
        await connection.run("rm -r /var/lib/letterpress/abcdefgh/cache", "losing the cache")
        assert await go_through(WORKER_STEPS, on(connection=connection)) == ("weights folder",)
        assert said.count("# looking at it") == 2
    finally:
        connection.close()


@dataclass(frozen=True)
class Ending:
    """A look that takes all others along."""

    name: str = "ending"
    kinds: frozenset[HostKind] = VMS

    def look(self, _: Machine) -> str:
        return "echo going; kill -TERM $$"

    def judge(self, _: Machine, seen: Done) -> Wrong | None:
        raise AssertionError(seen)

    async def act(self, machine: Machine) -> None:
        raise AssertionError(machine)


async def test_a_look_that_comes_to_no_end_is_named(on: Callable[..., Machine]) -> None:
    with pytest.raises(StepError, match=r"ending: looking at it ended with status 143\. The last"):
        await go_through((Gpus(), Ending(), Image()), on())


async def test_a_download_speed_that_will_do_is_measured_once_and_another_one_again(
    on: Callable[..., Machine], vm: TestMachine
) -> None:
    described = Described(1, download_mbit_s=100)

    def curl_says(speed: str) -> None:
        vm.inside("sh", "-c", f"printf '#!/bin/sh\necho >>/var/asked; printf {speed}\n' >/usr/local/bin/curl")
        vm.inside("chmod", "755", "/usr/local/bin/curl")

    try:
        for speed, shown in (("1000000", 8), ("", 0), ("2000000", 16)):
            curl_says(speed)
            with pytest.raises(StepError, match=f"it downloads {shown} Mbit/s, and 100 are described"):
                await go_through((Download(),), on(described=described))
        curl_says("12500000")
        assert await go_through((Download(),), on(described=described)) == ("download speed",)
        assert await go_through((Download(),), on(described=described)) == ()
        assert len(vm.inside("cat", "/var/asked").splitlines()) == 4
    finally:
        vm.inside("rm", "/usr/local/bin/curl", "/var/asked")


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


async def test_a_workers_machine_wants_no_python(on: Callable[..., Machine], vm: TestMachine) -> None:
    await go_through(WORKER_STEPS, on())
    with without_python(vm):
        with pytest.raises(CalledProcessError):
            vm.inside("/usr/local/bin/python3", "-c", "")
        again = replace(on().image, tag="letterpress-worker:without-python")
        assert await go_through(WORKER_STEPS, on(image=again)) == ("image",)


async def test_a_container_that_is_not_the_workers_image_is_refused_with_what_it_lacks(
    on: Callable[..., Machine], vm: TestMachine
) -> None:
    pod = on(kind=HostKind.CONTAINER, described=Described(gpus=0))
    with without_python(vm), pytest.raises(StepError, match="no letterpress-container and no python3 in") as caught:
        await go_through(WORKER_STEPS, pod)
    assert "docs/container.md" in str(caught.value)


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


PULLED = WantedImage("ghcr.io/a/w:3", pull="ghcr.io/a/w:3", username="acme", password="pull-secret-1")


async def test_a_registrys_password_goes_by_standard_input_and_stays_nowhere(
    on: Callable[..., Machine], vm: TestMachine
) -> None:
    vm.told(registry_password=PULLED.password)
    await go_through((Image(),), on(image=PULLED))
    assert lying(vm, PULLED) == ""


async def test_a_login_is_left_with_no_credential_helper_of_roots(on: Callable[..., Machine], vm: TestMachine) -> None:
    image = replace(PULLED, tag="ghcr.io/a/w:5", pull="ghcr.io/a/w:5")
    vm.told(registry_password=image.password, credential_helper=True)
    try:
        assert await go_through((Image(),), on(image=image)) == ("image",)
    finally:
        vm.told(credential_helper=False)
    assert lying(vm, image) == ""


async def test_a_look_that_hangs_is_told_with_what_to_run(
    on: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.bootstrap.step.LOOK_S", 2.0)
    with pytest.raises(StepError) as caught:
        await go_through((Scripted("fine", "true"), Scripted("stuck", "echo so far; sleep 600")), on())
    said = str(caught.value)
    assert "stuck: looking at it did not end within 2 s" in said
    assert "The last that it said: so far" in said
    assert "as root, and see to what hangs or fails there: echo so far; sleep 600" in said
    assert "= fine:" not in said, "what parts the answers is nobody's word"


def test_a_look_of_several_lines_is_told_as_it_is() -> None:
    script = "ss -Hltnp\nsystemctl show ssh\n"
    assert by_hand(Done(124, "= image: 0\n", "late\n"), script).endswith("fails there:\nss -Hltnp\nsystemctl show ssh")


@dataclass(frozen=True)
class Scripted:
    name: str
    script: str
    kinds: frozenset[HostKind] = EVERYWHERE

    def look(self, machine: Machine) -> str:  # noqa: ARG002 - the protocol's
        return self.script

    def judge(self, machine: Machine, seen: Done) -> Wrong | None:  # noqa: ARG002 - the protocol's
        return None

    async def act(self, machine: Machine) -> None:
        """There is nothing to put right."""


async def test_a_pull_that_is_killed_leaves_no_login_behind(on: Callable[..., Machine], vm: TestMachine) -> None:
    image = replace(PULLED, tag="ghcr.io/a/w:4", pull="ghcr.io/a/w:4")
    vm.told(registry_password=image.password, registry="hangs")
    pulling = asyncio.create_task(go_through((Image(),), on(image=image)))
    async with asyncio.timeout(30):
        pulls = "pgrep -af 'bin/docker .*pull --quiet ghcr.io/a/w:4$' || :"
        while not (processes := vm.inside("sh", "-c", pulls)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert lying(vm, image) == "", "another process finds none meanwhile"
    assert image.password not in processes
    vm.inside("pkill", "-KILL", "-f", image.pull)
    with pytest.raises(CommandError, match=r"pulling ghcr\.io/a/w:4 failed"):
        await pulling
    assert lying(vm, image) == ""


def lying(vm: TestMachine, image: WantedImage) -> str:
    """Files of the machine that hold the password, as it is or as Docker keeps a login."""
    kept = base64.b64encode(f"user:{image.password}".encode()).decode()
    script = f"grep -rlsF -e {image.password} -e {kept} /run /var /home /root/.docker /root/.password-store "
    script += "| grep -v standin || :"
    return vm.inside("sh", "-c", script)


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
