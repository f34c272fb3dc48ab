"""A stack on test machines, driven as a user drives it."""

from __future__ import annotations

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
  interactive: {{machines: {count}, first_port: {first}, warm_sizes: [256x256]}}
hosts:
"""


@dataclass
class HostsStack(UserStack):
    """`machines` by the names that the stack file gives them."""

    machines: dict[str, TestMachine] = field(default_factory=dict)
    key: Path = Path()
    model: str = "tiny"
    more: str = ""
    described: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ports[2:4] = [FIRST_PORT, FIRST_PORT + 1]

    def describe(self, more: str = "", **settings: str) -> None:
        """Write the stack file; `settings` are more settings of hosts, by their names."""
        edge, admin, first = self.ports[:3]
        head = HEAD.format(
            name=self.name, model=self.model, more=more, edge=edge, admin=admin, first=first, count=len(self.machines)
        )
        hosts = "".join(
            f"  {name}: {{address: {one.address}, user: {one.users[0]['name']}, port: {one.port}, key: {self.key}, "
            f"disk_gib: 0.1{settings.get(name, '')}}}\n"
            for name, one in self.machines.items()
        )
        self.file.write_text(head + hosts)


@contextmanager
def hosts_stack(folder: Path, users: Sequence[dict[str, Any]]) -> Iterator[HostsStack]:
    """Machines that run, and a stack file that describes them; nothing is deployed. Ends with all of it gone."""
    with ExitStack() as stack:
        key = ensure_key(folder / "own", LOGIN)
        public = public_line(key, "operator")
        machines = {
            f"h{number}": stack.enter_context(machine(public, **user)) for number, user in enumerate(users, start=1)
        }
        made = HostsStack(folder, machines=machines, key=key)
        made.describe()
        try:
            yield made
        finally:
            made.make("destroy")
