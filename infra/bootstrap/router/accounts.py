"""The two users of a router's machine, and the folders that are theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from infra.bootstrap.router.machine import RouterMachine
from infra.bootstrap.step import VMS, Wrong
from infra.clouds import HostKind
from infra.ssh.connection import Done

MAKE = "useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin"


@dataclass(frozen=True, slots=True)
class Folder:
    path: PurePath
    mode: str
    owner: str
    group: str

    @property
    def seen(self) -> str:
        """As `stat -c '%a %U %G %n'` shows it."""
        return f"{self.mode} {self.owner} {self.group} {self.path}"


def folders(machine: RouterMachine) -> Iterator[Folder]:
    """The edge passes through what lies above the images, and lists none of it."""
    layout, router, edge = machine.layout, machine.accounts.router, machine.accounts.edge
    yield Folder(layout.root.parent, "711", "root", "root")
    yield Folder(layout.root, "711", "root", "root")
    yield Folder(layout.root / "code", "755", "root", "root")
    yield Folder(layout.secrets, "710", "root", router)
    yield Folder(layout.data, "710", router, router)
    yield Folder(layout.artifacts, "2750", router, router)
    yield Folder(layout.tunnels, "700", router, router)
    yield Folder(layout.redis, "700", router, router)
    yield Folder(layout.edge, "700", edge, edge)
    yield Folder(layout.edge / "tls", "700", edge, edge)
    yield Folder(layout.edge / "log", "700", edge, edge)


@dataclass(frozen=True, slots=True)
class Users:
    name: str = "users and folders"
    kinds: frozenset[HostKind] = VMS

    def look(self, machine: RouterMachine) -> str:
        paths = " ".join(str(folder.path) for folder in folders(machine))
        accounts = machine.accounts
        return f"id -nG {accounts.edge} | tr ' ' '\\n' | grep -qx {accounts.router} && stat -c '%a %U %G %n' {paths}"

    def judge(self, machine: RouterMachine, seen: Done) -> Wrong | None:
        wanted = "\n".join(folder.seen for folder in folders(machine))
        if seen.status == 0 and seen.output.strip() == wanted:
            return None
        return Wrong(f"making {machine.accounts.router}, {machine.accounts.edge} and what is theirs")

    async def act(self, machine: RouterMachine) -> None:
        accounts = machine.accounts
        users = "\n".join(f"id {user} >/dev/null 2>&1 || {MAKE} {user}" for user in (accounts.router, accounts.edge))
        made = "\n".join(
            f"install -d -m {each.mode} -o {each.owner} -g {each.group} {each.path}" for each in folders(machine)
        )
        script = f"set -e\n{users}\nusermod -a -G {accounts.router} {accounts.edge}\n{made}"
        await machine.connection.run(script, "making its users and folders")
