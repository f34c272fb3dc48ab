"""Three machines that a user has already, from bare to serving and back, as the Makefile does it.

One of them is root's own, one has a user whom sudo asks for a password, and one is a pod. The weights are a gated
repository's, the image is a registry's. The tests are a walk: each goes on where the one before it ended.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulators.hub import TOKEN_ACCEPTED, TOKEN_OTHER, Repository, hub
from tests.hosts.scan import open_ports
from tests.hosts.stack import HostsStack, hosts_stack
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak]

MODEL = "acme/house"
SUDO, NOT_SUDO, REGISTRY = "sudo's $1 'secret'", "not-sudos-secret", "the-registrys-secret"
HEAD = """\
accept_license: true
image: {pull: "registry.test/acme/worker:1", username: acme, password: "${REGISTRY_PASSWORD}"}
"""
DESCRIBED = {"h1": ", gpu: H100", "h2": ', sudo_password: "${SUDO_PASSWORD}"', "h3": ", kind: container"}
H100, L4 = ["NVIDIA H100 80GB HBM3", 81559], ["NVIDIA L4", 23034]
FILL = "dd if=/dev/zero of=/var/fill bs=256k 2>/dev/null; ls -l /var/fill"


@dataclass
class Walk:
    stack: HostsStack

    @cached_property
    def client(self) -> httpx.Client:
        """Of the router, which stays where it is."""
        return self.stack.client()

    def image(self) -> bytes:
        wanted = {"prompt": "a press", "width": 256, "height": 256, "steps": 2}
        answer = self.client.post("/generate", json=wanted).raise_for_status()
        return base64.b64decode(answer.json()["image"])

    def workers(self) -> dict[str, tuple[str, int]]:
        """What the router believes of each, and how many jobs it has finished."""
        seen = httpx.get(f"http://127.0.0.1:{self.stack.ports[1]}/workers", trust_env=False).raise_for_status().json()
        return {worker["name"]: (worker["health"], worker["finished"]) for worker in seen}

    def ready(self) -> set[str]:
        return {name for name, (health, _) in self.workers().items() if health == "ready"}

    def refused(self, **messages: str) -> str:
        """Deploy, and be told one thing of each of these machines (`h1`, …) and nothing of the others."""
        done = self.stack.make("deploy")
        assert done.returncode != 0
        _, *parts = re.split(r"^(?:error: )?interactive-(\d)-workers: ", done.stderr, flags=re.MULTILINE)
        assert [f"h{number}" for number in parts[::2]] == list(messages), done.stderr
        for (name, message), said in zip(messages.items(), parts[1::2], strict=True):
            assert f"({self.stack.machines[name].address})" in said
            assert re.search(message, said), done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, tiny_repository: Path) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("three")
    machines: tuple[dict[str, Any], ...] = ({}, {"user": "ubuntu", "password": SUDO, "size": "512m"}, {"is_pod": True})
    with hosts_stack(folder, machines) as stack:
        first, second, _ = stack.machines.values()
        for one in (first, second):
            one.told(registry_password=REGISTRY)
        with hub({MODEL: Repository(tiny_repository)}, first.network.here) as served:
            stack.model = MODEL
            stack.describe(HEAD, **DESCRIBED)
            stack.environment |= {
                "HF_ENDPOINT": served.url,
                "HF_TOKEN": TOKEN_ACCEPTED,
                "SUDO_PASSWORD": SUDO,
                "REGISTRY_PASSWORD": REGISTRY,
            }
            yield Walk(stack)


def test_each_fault_is_one_message_harms_nobody_else_and_the_next_deploy_goes_on(walk: Walk) -> None:
    stack = walk.stack
    first, second, third = stack.machines.values()
    first.told(gpus=None)
    stack.environment["SUDO_PASSWORD"] = NOT_SUDO
    walk.refused(
        h1=r"GPUs: no NVIDIA driver answers \(nvidia-smi: .*failed.*\)\. Install the driver .* deploy again",
        h2="sudo did not take the password of ubuntu: see `sudo_password` in the stack file",
    )
    assert walk.image().startswith(b"\x89PNG"), "the third machine serves"
    served_by = third.inside("pgrep", "-f", "python3 -m worker")

    first.told(gpus=[L4])
    stack.environment["SUDO_PASSWORD"] = SUDO
    second.inside("sh", "-c", FILL)
    walk.refused(
        h1="GPUs: H100 is described and it has NVIDIA L4. Mend the machine, or describe",
        h2=r"free on /var/lib/letterpress|Its last lines:\n.*No space left on device(.|\n)*df -h",
    )

    first.told(gpus=[H100], registry="refuses")
    second.inside("rm", "/var/fill")
    stack.environment["HF_TOKEN"] = TOKEN_OTHER
    walk.refused(
        h1=r"pulling \S+ failed .*Its last lines:\n.*pull access denied.*\n.*See `image.pull`",
        h2=r"weights: acme/house is gated, and .* may not download it: accept.*HF_TOKEN of your.*deploy again",
    )
    assert third.inside("pgrep", "-f", "python3 -m worker") == served_by
    assert walk.image().startswith(b"\x89PNG")

    first.told(registry="")
    stack.environment["HF_TOKEN"] = TOKEN_ACCEPTED
    said = stack.ok("deploy")
    assert "2 created, 2 repaired" in said, "two registrations, and the machines that had failed"
    for done_before in ("image", "firewall"):
        assert not re.search(rf"interactive-2-workers +{done_before}: ", said), "it goes on, and begins nothing anew"
    assert "interactive-3-workers" not in said
    assert third.inside("pgrep", "-f", "python3 -m worker") == served_by


def test_images_come_from_workers_that_listen_within_their_machine_alone(walk: Walk) -> None:
    assert "Nothing to change" in walk.stack.ok("deploy")
    with ThreadPoolExecutor(6) as asking:
        assert all(made.result().startswith(b"\x89PNG") for made in [asking.submit(walk.image) for _ in range(12)])
    assert {finished > 0 for _, finished in walk.workers().values()} == {True}, "each has made some"
    machines = walk.stack.machines.values()
    for port, one in enumerate(machines, walk.stack.ports[2]):
        listening = re.findall(r"(\S+):(\d+)\s+\S+:\*", one.inside("ss", "-Hltn"))
        assert {address for address, listened in listening if listened == str(port)} == {"127.0.0.1"}
    with ThreadPoolExecutor(3) as scanning:
        assert list(scanning.map(open_ports, (one.address for one in machines))) == [{22}] * 3


def test_a_restart_a_killed_worker_and_a_cut_cable_mend_themselves(walk: Walk) -> None:
    first, second, third = walk.stack.machines.values()
    every = {"interactive-1", "interactive-2", "interactive-3"}
    assert walk.ready() == every
    third.network.pull_the_cable()
    first.restart()
    assert walk.image().startswith(b"\x89PNG"), "the second machine serves"
    eventually(lambda: walk.ready() == {"interactive-2"}, 60, "the router knows who is away")
    third.network.put_it_back()
    eventually(lambda: "interactive-3" in walk.ready(), 120, "the tunnel is there again")
    second.inside("pkill", "-9", "-f", "python3 -m worker")
    assert walk.image().startswith(b"\x89PNG"), "another worker serves"
    eventually(lambda: walk.ready() == every, 300, "all are back by themselves")
    third.restart()
    eventually(lambda: walk.ready() == every - {"interactive-3"}, 60, "the router knows that the pod is away")
    eventually(lambda: walk.ready() == every, 300, "the pod is started again, and keeps its units")
    assert "Nothing to change" in walk.stack.ok("deploy")


def test_another_host_key_is_refused_and_a_destroy_needs_no_machine_that_answers(walk: Walk) -> None:
    stack = walk.stack
    first, second, _ = stack.machines.values()
    first.new_host_key()
    done = stack.make("deploy")
    assert done.returncode != 0
    assert f"{first.address} port 22 is not the one that was met there first" in done.stderr
    assert done.stderr.count("letterpress forget-host-key") == 1

    second.stop()
    said = stack.ok("destroy")
    assert said.count("still has what the stack put there") == 2, "neither answers as it should"
    assert f"({second.address})" in said
    assert stack.processes() == []
