"""Where the router's things lie on its host, and whom its processes run as. Pure.

On this computer they lie in the stack's folder and run as whoever deploys. On a machine of its own there are two
users of the stack's, one for the router and one for the edge that everybody can talk to: that one reads images and
its own certificate, and neither keys nor database.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.hosts.remote import stack_folder
from infra.paths import StackPaths
from router.contract import TUNNEL_SOCKET_MAX

TUNNELS = "t"
TUNNELS_ROOM = len(f"{TUNNELS}/") + TUNNEL_SOCKET_MAX
"""Bytes that the sockets of tunnels take below the run directory of this computer."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """Users of a machine, each with a group of its name; the edge's is a member of the router's group."""

    router: str
    edge: str


@dataclass(frozen=True, slots=True)
class Layout:
    """`run` is short and goes with a restart: `sockets` are the routers', `tunnels` the tunnel service's, the edge has
    a folder `edge` of its own in it. `accounts` is None where everything runs as ourselves."""

    root: Path
    data: Path
    secrets: Path
    edge: Path
    tunnels: Path
    logs: Path
    run: Path
    sockets: Path
    tunnel_run: Path
    stack: Path
    """Above everything that the edge may have to enter to reach an image."""
    accounts: Accounts | None = None

    @property
    def artifacts(self) -> Path:
        return self.data / "artifacts"

    @property
    def challenges(self) -> Path:
        """What a certificate authority asks for."""
        return self.run / "acme" if self.accounts is None else self.run / "edge" / "acme"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    def code(self, version: str) -> Path:
        """The virtual environment of one version; `current` leads to the one that was deployed last."""
        return self.root / "code" / version


def layout_here(paths: StackPaths) -> Layout:
    return Layout(
        root=paths.router,
        data=paths.router / "data",
        secrets=paths.secrets,
        edge=paths.router / "edge",
        tunnels=paths.router / "tunnels",
        logs=paths.logs,
        run=paths.run,
        sockets=paths.run,
        tunnel_run=paths.run / TUNNELS,
        stack=paths.root,
    )


def layout_there(stack_id: str) -> Layout:
    """Of a machine with systemd."""
    root = Path(stack_folder(stack_id))
    run = Path(run_folder(stack_id))
    return Layout(
        root=root,
        data=root / "data",
        secrets=root / "secrets",
        edge=root / "edge",
        tunnels=root / "tunnels",
        logs=root / "log",
        run=run,
        sockets=run / "router",
        tunnel_run=run / "tunnels",
        stack=root,
        accounts=Accounts(f"lp-{stack_id}", f"lp-{stack_id}-edge"),
    )


def run_folder(stack_id: str) -> PurePosixPath:
    return PurePosixPath(f"/run/lp-{stack_id}")
