"""A router on a machine of its own and a worker on another, driven as users drive them."""

from __future__ import annotations

import base64
import copy
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from infra.ssh.keys import LOGIN, ensure_key, public_line
from tests.authority import Authority
from tests.e2e.stack import REPOSITORY, UserStack
from tests.hosts import FIRST_PORT, TestMachine, machine
from tests.hosts.wheels import wheels

NAME = "images.example.com"
DESCRIPTION = """\
name: {name}
cloud: hosts
model: tiny
state: {state}
router:
  host: {{address: {front}, user: ubuntu}}
  webhook_allow: ["{here}/32"]
  edge: {{tls: {{certificate: {chain}, key: {private}, domain: {called}}}}}
  admin: {{port: {admin}}}
pools:
  interactive: {{machines: 1, first_port: {first}, warm_sizes: [256x256]}}
hosts:
  w: {{address: {worker}, disk_gib: 0.1}}
"""


@dataclass
class Apart(UserStack):
    """`front` is the router's machine, `worker` the other one. Both know the stack's own key and no other, and the
    state lies where another operator can reach it."""

    front: TestMachine = field(init=False)
    worker: TestMachine = field(init=False)
    trust: ssl.SSLContext = field(init=False)
    certificate: Path = field(init=False)
    """Its folder; the stack has a copy of what is in it."""

    def post(self, path: str, key: str = "", **more: str) -> dict[str, Any]:
        """An image is asked for by its edge's name; what is answered."""
        with httpx.Client(base_url=f"https://{self.front.address}", verify=self.trust, trust_env=False) as client:
            answer = client.post(
                path,
                json={"prompt": "a press", "width": 256, "height": 256, "steps": 2, **more},
                headers={"Host": NAME, "Authorization": f"Bearer {key or self.endpoint()['api_key']}"},
                extensions={"sni_hostname": NAME},
                timeout=120,
            )
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            return found

    def image(self, key: str = "") -> bytes:
        return base64.b64decode(self.post("/generate", key)["image"])

    def taken_over(self, passphrase: str) -> Apart:
        """The same stack for somebody with the stack file, the passphrase and a home of their own."""
        other = copy.copy(self)
        home = self.folder / "other"
        other.root = home / self.name
        other.environment = self.environment | {
            "LETTERPRESS_HOME": str(home),
            "LETTERPRESS_BUNDLE_PASSPHRASE": passphrase,
        }
        return other

    def verb(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A verb of the console script that takes the stack as its argument; nothing is asserted of how it ends."""
        command = [str(REPOSITORY / ".venv/bin/letterpress"), *words, str(self.file)]
        return subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

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
        made = Apart(folder)
        public = public_line(ensure_key(made.root / "secrets", LOGIN), "letterpress")
        made.front = stack.enter_context(machine(public, user="ubuntu", gpus=None, packages=str(index)))
        made.worker = stack.enter_context(machine(public))
        made.certificate = folder / "authority"
        made.certificate.mkdir()
        authority = Authority(made.certificate)
        chain, private = authority.sign(NAME)
        made.trust = ssl.create_default_context(cafile=str(authority.root))
        (folder / "state").mkdir()
        made.file.write_text(
            DESCRIPTION.format(
                name=made.name,
                front=made.front.address,
                worker=made.worker.address,
                state=f"file://{folder}/state",
                here=made.front.network.here,
                chain=chain,
                private=private,
                called=NAME,
                admin=made.ports[1],
                first=FIRST_PORT,
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
