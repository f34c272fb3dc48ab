"""Where the router is, this computer or a machine of its own: its host, its layout, and the way to its admin app."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from infra.clouds import Access
from infra.hosts import Progress
from infra.hosts.layout import Layout, layout_here, layout_there
from infra.hosts.local import LocalHost
from infra.hosts.ssh import SshHost
from infra.identity import Identity
from infra.provider.site import TUNNELLED, Site
from infra.secrets import ADMIN_KEY
from infra.ssh.connection import Connection
from infra.ssh.http import ThroughSsh
from infra.ssh.target import Patience, Target
from router.client import AdminClient
from router.contract import tunnel_socket

UntilItAnswers = Callable[[str], Awaitable[None]]
"""Returns when the edge answers for the router, or raises once this unit has ended."""

ORDINARY = Patience()
LEAVE = Patience(reach_s=3.0)
"""For what is to go: a host that does not answer keeps it."""
SETTING = "router.host"
NAME = "router"


@dataclass(frozen=True, slots=True)
class RouterPlace:
    """Of one stack. `access` is None for this computer."""

    site: Site
    access: Access | None
    patience: Patience = ORDINARY

    @property
    def machine(self) -> str:
        """The name that its host key is pinned under."""
        return Identity(self.site.stack_id).machine(NAME, 1)

    @property
    def layout(self) -> Layout:
        return layout_there(self.site.stack_id) if self.access else layout_here(self.site.paths)

    @property
    def target(self) -> Target:
        if self.access is None:
            raise ValueError("this computer is not reached through SSH")
        return self.site.target(self.machine, self.access, SETTING)

    async def connect(self, progress: Progress = lambda _: None) -> Connection:
        return await self.site.connections.to(self.target, progress, self.patience)

    def host(self) -> LocalHost | SshHost:
        paths = self.site.paths
        return self.there() if self.access else LocalHost(NAME, paths.router, paths.logs)

    def there(self) -> SshHost:
        """Its machine, whose files are the router's own user's."""
        accounts = self.layout.accounts
        owner = f"{accounts.router}:{accounts.router}" if accounts else "root:root"
        return SshHost(self.target.shown, self.site.stack_id, self.connect, owner)

    def admin(self, url: str) -> AdminClient:
        """A client of the admin app that answers at `url` on the host's own loopback, with the stack's own key. The
        connection stays for others."""
        return AdminClient(url, self.site.secrets.ensure(ADMIN_KEY), ThroughSsh(self.connect) if self.access else None)

    def admin_alone(self, url: str, key: str) -> AdminClient:
        """As `admin`, for one who has no other use for the connection: it goes with the client. `key` may be empty."""
        leave = self.site.connections.close
        return AdminClient(url, key, ThroughSsh(self.connect, leave) if self.access else None)

    def on_database(self, *verb: str) -> str:
        """A command for the machine's own shell, as root, that does something with the router's database."""
        layout, accounts = self.layout, self.layout.accounts
        user = accounts.router if accounts else ""
        python = layout.code("current") / "bin" / "python"
        told = f"LETTERPRESS_ROUTER_DATA_DIR={layout.data}"
        return shlex.join(("runuser", "-u", user, "--", "env", told, str(python), "-m", "router.db", *verb))

    def worker_url(self, url: str) -> str:
        """A worker's address as the router has it: `tunnel:NAME` is the near end of the way to it."""
        if not url.startswith(TUNNELLED):
            return url
        return f"unix:{tunnel_socket(self.layout.tunnel_run, url.removeprefix(TUNNELLED))}"
