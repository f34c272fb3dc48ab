"""Machines whose workers are reached through SSH, and the ways there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated

from pydantic import Field, StringConstraints

from router.contract.names import MAX_PORT, WorkerName
from worker.contract import Frozen

MachineId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
TUNNEL_SOCKET_MAX = 26
"""Bytes of the longest path of a socket below the tunnel service's run directory: a worker's, or for a moment ssh's."""
HostKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*$")]
"""A host's public key as in known_hosts: its type and itself, without a name before or a comment behind."""

STALE = timedelta(seconds=20)
"""The service writes every five seconds; after so long it is not there any more."""


class TunnelMachine(Frozen):
    """A machine whose workers are reached through SSH. `workers` gives each one's port on the machine's loopback."""

    id: MachineId
    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,254}$")]
    port: int = Field(default=22, ge=1, le=MAX_PORT)
    user: Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
    host_key: HostKey
    workers: dict[WorkerName, Annotated[int, Field(ge=1, le=MAX_PORT)]]


class TunnelMachines(Frozen):
    """The file that the tunnel service keeps to: what is in it is connected, what is not is not."""

    machines: list[TunnelMachine]


class TunnelState(StrEnum):
    """connecting -> up -> waiting -> connecting; `refused` waits longer, for somebody to look."""

    CONNECTING = "connecting"
    UP = "up"
    WAITING = "waiting"
    REFUSED = "refused"


class ForwardView(Frozen):
    """One worker's way: the socket here, and what is wrong with it if something is."""

    worker: WorkerName
    socket: str
    port: int
    up: bool
    reason: str = ""


class TunnelView(Frozen):
    """One machine's connection, and its workers' ways through it. Times are UTC."""

    machine: MachineId
    state: TunnelState
    reason: str = ""
    since: datetime
    failures: int = Field(ge=0, description="Connections in a row that failed.")
    forwards: list[ForwardView]


class TunnelsView(Frozen):
    """What the tunnel service of this host wrote last; nothing if it never has."""

    written_at: datetime | None = None
    trouble: str = Field(default="", description="Why the machines' file could not be followed; empty if it could.")
    tunnels: list[TunnelView] = Field(default_factory=list)

    def silent(self, now: datetime) -> bool:
        """Whether the service, which has written, is not there any more."""
        return self.written_at is not None and now - self.written_at > STALE


def tunnel_socket(run: PurePath, worker: str) -> PurePath:
    """The near end of the way to a worker, in the tunnel service's run directory. Named by a digest where the name is
    long: a socket's path ends at 107 bytes."""
    name = worker if len(worker) <= 24 else f"{worker[:11]}-{hashlib.sha256(worker.encode()).hexdigest()[:12]}"
    return run / "w" / name


def forward_only(public_key: str, ports: Iterable[int]) -> str:
    """The line of authorized_keys for the tunnel service's key: it may forward to these loopback ports, and nothing
    else (sshd(8), AUTHORIZED_KEYS FILE FORMAT)."""
    opens = ",".join(f'permitopen="127.0.0.1:{port}"' for port in sorted(set(ports)))
    return f"restrict,port-forwarding,{opens} {public_key.strip()}"
