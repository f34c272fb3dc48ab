"""Hosts are machines that we can run things on. One protocol: `local`; `ssh` for those with systemd, `container`
for pods without it.

A `Unit` is a long-lived process, described: the local host runs it in a session of its own, an SSH host
under its service manager. Each keeps it until told otherwise, and each can tell whether what runs is what
was described.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import PurePath
from typing import Protocol

from infra.errors import InfraError
from infra.hosts.logs import Position

Progress = Callable[[str], None]
"""Told which stage something is in, in a few words for a person."""

Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address that a unit will listen on; `setting` names where the user can change it."""

    host: str
    port: int
    setting: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Service:
    """What only a service manager does for a unit; the local host does without.

    `before` is run ahead of each start and may fail, `stop` is what ends it in the place of a signal. `lines` are
    more lines of systemd's `[Service]` section, `after` other units of ours that it starts after.
    """

    before: tuple[tuple[str, ...], ...] = ()
    stop: tuple[str, ...] = ()
    restart_after_s: float = 5.0
    lines: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """A process to keep. `env` holds no secret: secrets are files, and `env` names their paths.

    What the user has in the environment and nowhere else (the hub's token) goes by name: see `inherits`.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    listens: tuple[Listen, ...] = ()
    stop_signal: str = "SIGTERM"
    stop_grace: float = 10.0
    """Seconds between the stop signal and SIGKILL."""
    inherits: tuple[str, ...] = ()
    """Names of environment variables that it takes over, if set, from whoever starts it."""
    config: str = ""
    """Digest of the configuration files that it reads when it starts; empty if there are none."""
    reload_signal: str = ""
    """Makes it read them again. Without one, a changed `config` means a restart."""
    service: Service = Service()

    @property
    def fingerprint(self) -> str:
        """Changes whenever what would run changes."""
        described: list[object] = [self.argv, sorted(self.env.items()), [str(a) for a in self.listens], self.inherits]
        if self.service != Service():
            described.append(asdict(self.service))
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


class UnitState(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"  # no process of it is left
    ORPHANED = "orphaned"  # its main process is gone, children of it still hold its place
    UNKNOWN = "unknown"  # the host did not answer


@dataclass(frozen=True, slots=True)
class UnitStatus:
    state: UnitState
    pid: int | None = None
    since: datetime | None = None
    fingerprint: str | None = None


class HostError(InfraError):
    """Something on a host failed; the message names the host, the unit, its last lines, and what to try."""


class PortInUseError(HostError):
    """A described address is held by a process that is not ours."""


class Host(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def root(self) -> PurePath:
        """The stack's folder on this host; relative paths below are under it."""
        ...

    async def observe(self, unit: str) -> UnitStatus: ...

    async def ensure(self, unit: Unit, progress: Progress) -> UnitStatus:
        """Make `unit` run as described: start it, adopt what runs, or replace what runs otherwise."""
        ...

    async def remove(self, unit: str, progress: Progress) -> None:
        """Stop the unit and all its processes, and only them; gone is success. Logs stay."""
        ...

    async def write(self, path: PurePath, content: bytes, mode: int = 0o600) -> None:
        """Put a file in place, whole or not at all."""
        ...

    async def read(self, path: PurePath) -> bytes | None:
        """A file's content; None if there is none."""
        ...

    async def get(self, port: int, path: str) -> tuple[int, bytes] | None:
        """GET from a server on the host's own loopback: status and body; None if nobody answers as HTTP."""
        ...

    async def tail(self, unit: str, lines: int) -> str:
        """The last lines that the unit wrote."""
        ...

    async def log_end(self, unit: str) -> Position:
        """Where the unit's log ends now."""
        ...

    async def written_since(self, unit: str, seen: Position) -> tuple[str, Position]:
        """The whole lines that the unit wrote since, and how far they go."""
        ...

    async def units(self) -> Mapping[str, UnitStatus]:
        """Everything this host was asked to keep."""
        ...
