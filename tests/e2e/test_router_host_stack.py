"""A router on a machine of its own and a worker on another, from bare to serving and back, as the Makefile does it."""

from __future__ import annotations

import base64
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from infra.ssh.keys import LOGIN, ensure_key, public_line
from tests.authority import Authority
from tests.e2e.stack import REPOSITORY, UserStack
from tests.hosts import TestMachine, machine
from tests.hosts.wheels import wheels
from tests.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak]

NAME = "images.example.com"
DESCRIPTION = """\
name: {name}
cloud: hosts
model: tiny
router:
  host: {{address: {front}, user: ubuntu, key: {key}}}
  edge: {{tls: {{certificate: {chain}, key: {private}, domain: {called}}}}}
  admin: {{port: {admin}}}
pools:
  interactive: {{machines: 1, first_port: {first}, warm_sizes: [256x256]}}
hosts:
  w: {{address: {worker}, key: {key}, disk_gib: 0.1}}
"""


@dataclass
class Apart(UserStack):
    """`front` is the router's machine, `worker` the other one."""

    front: TestMachine = field(init=False)
    worker: TestMachine = field(init=False)
    trust: ssl.SSLContext = field(init=False)

    def image(self) -> bytes:
        key = self.endpoint()["api_key"]
        with httpx.Client(base_url=f"https://{self.front.address}", verify=self.trust, trust_env=False) as client:
            answer = client.post(
                "/generate",
                json={"prompt": "a press", "width": 256, "height": 256, "steps": 2},
                headers={"Host": NAME, "Authorization": f"Bearer {key}"},
                extensions={"sni_hostname": NAME},
                timeout=120,
            )
            answer.raise_for_status()
            return base64.b64decode(answer.json()["image"])

    def tunnels(self) -> str:
        """What `letterpress tunnels` prints."""
        words = [str(REPOSITORY / ".venv/bin/letterpress"), "tunnels", str(self.file)]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True).stdout

    def served(self) -> bool:
        try:
            return self.image().startswith(b"\x89PNG")
        except httpx.HTTPError:
            return False


@contextmanager
def apart(folder: Path) -> Iterator[Apart]:
    """Two bare machines, and a stack file that describes them."""
    (folder / "index").mkdir()
    for above in (folder, *folder.parents[:2]):
        above.chmod(0o755)
    index = wheels("router", folder / "index")
    with ExitStack() as stack:
        key = ensure_key(folder / "own", LOGIN)
        public = public_line(key, "operator")
        made = Apart(folder)
        made.front = stack.enter_context(machine(public, user="ubuntu", gpus=None, packages=str(index)))
        made.worker = stack.enter_context(machine(public))
        authority = Authority(folder)
        chain, private = authority.sign(NAME)
        made.trust = ssl.create_default_context(cafile=str(authority.root))
        _, admin, first, _, _ = made.ports
        made.file.write_text(
            DESCRIPTION.format(
                name=made.name,
                front=made.front.address,
                worker=made.worker.address,
                key=key,
                chain=chain,
                private=private,
                called=NAME,
                admin=admin,
                first=first,
            )
        )
        try:
            yield made
        finally:
            made.make("destroy")


@contextmanager
def admin_open(stack: Apart) -> Iterator[str]:
    """The console's address, for as long as `make admin` runs."""
    with subprocess.Popen(
        stack.command("admin"), env=stack.environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout
        try:
            lines = iter(command.stdout.readline, "")
            yield next(found[1] for line in lines if (found := re.match(r"Admin console\s+(\S+)", line)))
        finally:
            command.terminate()


def test_a_router_and_a_worker_on_machines_of_their_own_come_to_serve_and_leave_without_a_trace(
    tmp_path: Path,
) -> None:
    with apart(tmp_path) as stack:
        stack.ok("deploy", timeout=900)
        assert stack.image().startswith(b"\x89PNG")
        assert "Nothing to change" in stack.ok("deploy")

        status = stack.ok("status")
        assert re.search(r"^edge +running", status, re.MULTILINE)
        assert re.search(r"^router +running", status, re.MULTILINE)
        assert re.search(r"^interactive-1 +ready", status, re.MULTILINE)
        assert "router      " in stack.ok("logs")
        assert re.search(r" up .*open", stack.tunnels())
        with admin_open(stack) as url:
            assert httpx.get(f"{url}/workers", trust_env=False).json()[0]["name"] == "interactive-1"

        stack.front.restart()
        eventually(stack.served, 120, "the router's machine comes back by itself")

        stack.worker.stop()
        stack.ok("destroy")
        left = (
            "ls -d /var/lib/letterpress /etc/letterpress /etc/systemd/system/letterpress-* /run/lp-*; nft list tables"
        )
        assert stack.front.inside("sh", "-c", f"{left} 2>/dev/null || :") == ""
        assert stack.processes() == []
