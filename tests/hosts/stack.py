"""A stack on test machines, driven as a user drives it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.ssh.keys import LOGIN, ensure_key, public_line
from tests.e2e.stack import UserStack
from tests.hosts import FIRST_PORT, TestMachine, machine

HEAD = """\
name: {name}
cloud: hosts
model: {model}
{more}router:
  edge: {{host: 127.0.0.1, port: {edge}}}
  admin: {{host: 127.0.0.1, port: {admin}}}
pools:
  interactive: {{machines: {count}, first_port: {first}, device: cpu, warm_sizes: [256x256]}}
hosts:
"""


@dataclass
class HostsStack(UserStack):
    """`machines` by the names that the stack file gives them; `said` is what all its commands printed."""

    machines: dict[str, TestMachine] = field(default_factory=dict)
    key: Path = Path()
    model: str = "tiny"
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ports[2:4] = [FIRST_PORT, FIRST_PORT + 1]

    def describe(self, more: str = "", **settings: str) -> None:
        """Write the stack file. `more` are lines of its head, `settings` more settings of hosts, by their names."""
        edge, admin, first = self.ports[:3]
        head = HEAD.format(
            name=self.name, model=self.model, more=more, edge=edge, admin=admin, first=first, count=len(self.machines)
        )
        hosts = "".join(
            f"  {name}: {{address: {one.address}, user: {one.users[0]['name']}, port: {one.port}, key: {self.key}, "
            f"disk_gib: 0.05{settings.get(name, '')}}}\n"
            for name, one in self.machines.items()
        )
        self.file.write_text(head + hosts)

    def make(self, target: str, *settings: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        done = super().make(target, *settings, timeout=timeout)
        self.said.append(done.stdout + done.stderr)
        return done


@contextmanager
def hosts_stack(folder: Path, machines: Sequence[dict[str, Any]]) -> Iterator[HostsStack]:
    """Machines that run, as `tests.hosts.machine` is told of each, and a stack file that describes them; nothing is
    deployed. Ends with all of it gone."""
    with ExitStack() as stack:
        key = ensure_key(folder / "own", LOGIN)
        public = public_line(key, "operator")
        made = {f"h{number}": stack.enter_context(machine(public, **one)) for number, one in enumerate(machines, 1)}
        deployed = HostsStack(folder, machines=made, key=key)
        deployed.describe()
        try:
            yield deployed
        finally:
            deployed.make("destroy")
