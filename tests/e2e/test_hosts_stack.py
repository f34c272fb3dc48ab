"""Three machines that a user has already, from bare to serving and back, as the Makefile does it.

One of them is root's own, one has a user whom sudo asks for a password, and one is a pod. The weights are a gated
repository's, the image is a registry's. The tests are a walk: each goes on where the one before it ended.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.secrets import SecretStore
from infra.ssh.keys import LOGIN, TUNNEL
from tests.emulators.hub import TOKEN_ACCEPTED, TOKEN_OTHER, Repository, hub
from tests.hosts.onlooker import Onlooker, entered, onlooker, readable
from tests.hosts.scan import open_ports
from tests.hosts.search import files, holds, places
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
    """The stack, and somebody else on this computer, who looks on all the while."""

    stack: HostsStack
    other: Onlooker
    secrets: dict[str, bytes] = field(default_factory=dict)

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
    with onlooker() as other, hosts_stack(folder, machines) as stack:
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
            made = Walk(stack, other)
            try:
                yield made
            finally:
                made.client.close()


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


def test_another_host_key_is_refused_until_a_person_says_that_it_is_meant(walk: Walk) -> None:
    stack, first = walk.stack, walk.stack.machines["h1"]
    first.new_host_key()
    done = stack.make("deploy")
    assert done.returncode != 0
    said = re.search(r"letterpress forget-host-key (\S+) --stack", done.stderr)
    assert said, done.stderr
    assert f"{first.address} port 22 is not the one that was met there first" in done.stderr
    assert done.stderr.count("forget-host-key") == 1
    stack.letterpress("forget-host-key", said[1])
    stack.ok("deploy")
    eventually(lambda: len(walk.ready()) == 3, 120, "its tunnel takes the new key")


def middle(private: bytes) -> bytes:
    """A line that only this private key has."""
    lines = private.splitlines()
    return lines[len(lines) // 2]


def test_no_secret_is_anywhere_but_where_it_belongs(walk: Walk) -> None:
    stack = walk.stack
    store = SecretStore(stack.root / "secrets")
    hook = walk.client.get("/v1/webhooks/secrets").raise_for_status().text
    given = {
        "hub": TOKEN_ACCEPTED,
        "hub, refused": TOKEN_OTHER,
        "sudo": SUDO,
        "registry": REGISTRY,
        "no sudo": NOT_SUDO,
    }
    secrets = {name: value.encode() for name, value in given.items()}
    secrets["webhooks"] = re.findall(r"whsec_([A-Za-z0-9+/=_-]{16,})", hook)[0].encode()
    secrets["second key"] = re.findall(r"lp_[\w-]{32,}", stack.letterpress("keys", "create", "second"))[0].encode()
    secrets["operator's key"] = middle(stack.key.read_bytes())
    for file in store.folder.iterdir():
        if not file.name.startswith("."):
            content = file.read_bytes().strip()
            secrets[file.name] = middle(content) if file.name in (LOGIN, TUNNEL) else content
    assert len(secrets) >= 17, sorted(secrets)
    texts = {value: name for name, value in secrets.items()}
    walk.secrets = secrets

    stack_id = (stack.root / "stack-id").read_text().strip()
    database = {stack.root / f"router/data/router.db{more}" for more in ("", "-wal")}
    tokens = {f"worker-token-interactive-{number}" for number in (1, 2, 3)}
    for file in files(stack.root):
        may = {file.name} if file.parent == store.folder else set[str]()
        may |= tokens | {"webhooks"} if file in database else set()
        may |= {TUNNEL} if file == stack.root / "router/tunnels/key" else set()
        assert {texts[text] for text in holds(file, texts)} <= may, file
    for number, one in enumerate(stack.machines.values(), 1):
        token = f"worker-token-interactive-{number}"
        belongs = {f"/var/lib/letterpress/{stack_id}/secrets/{token}": {token}, "/etc/standin.json": {"registry"}}
        found = {name: {texts[text] for text in held} for name, path in places(one) if (held := holds(path, texts))}
        assert found == {name: held for name, held in belongs.items() if name in found}
        assert any(token in held for held in found.values())

    printed = "\n".join(stack.said).encode()
    shown = {texts[text] for text in texts if text in printed}
    assert shown <= {"api-key", "admin-key"}, "`make endpoint` alone prints those"

    for above in (stack.folder, *stack.folder.parents[:2]):
        above.chmod(0o755)
    here = (stack.folder, Path("/run/letterpress"))
    assert readable(here, texts) == []
    assert str(stack.file) in entered((stack.folder,))
    begun = stack.key.stat().st_mtime  # nothing of this stack is older
    there = tuple(Path(name) for name in ("/etc", "/home", "/root", "/run", "/var/lib", "/var/log", "/usr/local"))
    for one in stack.machines.values():
        assert "/etc/passwd" in entered((Path("/etc"),), one)
        assert set(readable(there, texts, one, since=begun)) <= {"/etc/standin.json"}


def test_they_are_left_as_they_were_and_nobody_saw_a_secret_pass(walk: Walk) -> None:
    stack = walk.stack
    first, *others = stack.machines.values()
    first.stop()
    said = stack.ok("destroy")
    assert said.count("still has what the stack put there") == 1
    assert f"({first.address})" in said
    assert stack.processes() == []
    seen = walk.other.stop()
    assert b"letterpress-container" in seen
    assert [name for name, value in walk.secrets.items() if value in seen] == []
    traces = "ls -d /var/lib/letterpress /etc/letterpress /etc/systemd/system/letterpress-* /run/letterpress; "
    for one in others:
        assert one.inside("sh", "-c", f"{{ {traces} nft list table inet letterpress; }} 2>/dev/null || :") == ""
        assert one.inside("sh", "-c", "grep -rl letterpress-tunnel- /root/.ssh /home/*/.ssh || :") == ""
