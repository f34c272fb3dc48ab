"""Where a stack's resources are: which cloud a name means, which host a machine or the router runs on.

The stack's folder reaches the provider by its environment, never through a property: a state that is read
elsewhere must not lead to somebody's folders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.clouds import Access, Cloud, Machine, runpod, spheron
from infra.clouds.hosts import HostsCloud
from infra.clouds.local import LocalCloud
from infra.clouds.quota import Limit, Quota
from infra.clouds.runpod import RunpodCloud
from infra.clouds.runpod_serverless import Serverless
from infra.clouds.spheron import SpheronCloud
from infra.errors import InfraError
from infra.hosts import Host
from infra.identity import ensure_identity
from infra.paths import StackPaths
from infra.secrets import SecretStore
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.ssh.pins import Pins
from infra.ssh.pool import Connections
from infra.ssh.target import Target
from infra.stack import CloudName, resolve

STACK = "LETTERPRESS_STACK"
"""Names the stack that the provider works for; `LETTERPRESS_HOME` and `LETTERPRESS_RUN` say where it lies."""

NO_WAIT = "LETTERPRESS_NO_WAIT"
TUNNELLED = "tunnel:"
"""Begins the address of a worker that is reached through the tunnel service, as properties have it: no folder of this
computer is in a state."""


class Upgrades:
    """Workers that serve are replaced one after the other, and not at all once one has not come back."""

    def __init__(self) -> None:
        self.one_at_a_time = asyncio.Lock()
        self.failed = ""


@dataclass(frozen=True, slots=True)
class Site:
    """One stack's surroundings. `environ` is where `${NAME}` references are looked up."""

    paths: StackPaths
    environ: Mapping[str, str]
    _clouds: dict[CloudName, Cloud] = field(default_factory=dict, compare=False)
    _connections: list[Connections] = field(default_factory=list, compare=False)
    tunnels_changing: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
    upgrades: Upgrades = field(default_factory=Upgrades, compare=False)

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> Site:
        """The site that the environment names. Raises InfraError if it names none."""
        if not environ.get(STACK):
            raise InfraError(f"{STACK} is not set: this provider is started by `letterpress`, not by hand")
        return cls(StackPaths.of(environ[STACK]), environ)

    @property
    def secrets(self) -> SecretStore:
        return SecretStore(self.paths.secrets)

    @property
    def waits(self) -> bool:
        """Whether a machine that cannot be given back yet is waited for."""
        return not self.environ.get(NO_WAIT)

    def public_key(self) -> str:
        """What lets us in on rented machines: the stack's own SSH key, drawn now if there is none."""
        return public_line(ensure_key(self.paths.secrets, LOGIN), f"letterpress-{self.paths.root.name}")

    @property
    def stack_id(self) -> str:
        return ensure_identity(self.paths.root / "stack-id").id

    @property
    def connections(self) -> Connections:
        """Open for as long as this process works on the stack."""
        if not self._connections:
            self._connections.append(Connections(Pins(self.paths.known_hosts), self.paths.logs))
        return self._connections[0]

    def target(self, machine: str, access: Access, setting: str = "hosts") -> Target:
        """How a machine is reached, with what the environment alone knows; DescriptionError for what it lacks, by the
        `setting` that describes it."""
        key = Path(resolve(access.key, self.environ, f"{setting}.key")).expanduser() if access.key else None
        asked = access.sudo_password
        password = resolve(asked, self.environ, f"{setting}.sudo_password") if asked else ""
        own = ensure_key(self.paths.secrets, LOGIN)
        return Target(machine, access.address, access.port, access.user, key or own, password)

    def forget_host_key(self, machine: str) -> None:
        Pins(self.paths.known_hosts).forget(machine)

    def accounts(self) -> tuple[CloudName, ...]:
        """Clouds that can be asked from here: those that the environment has a key for."""
        unasked = self.unasked()
        return tuple(name for name in CloudName if name not in unasked)

    def unasked(self) -> Mapping[CloudName, str]:
        """The clouds that cannot be asked from here, each with the variable that is not set."""
        keys = {CloudName.SPHERON: spheron.API_KEY, CloudName.RUNPOD: runpod.API_KEY}
        return {name: key for name, key in keys.items() if not self.environ.get(key)}

    def cloud(self, name: CloudName) -> Cloud:
        match name:
            case CloudName.LOCAL:
                return LocalCloud(self.paths)
            case CloudName.HOSTS:
                return HostsCloud(self.paths)
            case CloudName.SPHERON:
                # One a site: what it saw a moment ago is shared by all resources that look.
                found = self._clouds.get(name) or SpheronCloud.of(self.environ, self.quota(name, spheron.LIMITS))
                return self._clouds.setdefault(name, found)
            case CloudName.RUNPOD:
                pods = self._clouds.get(name) or RunpodCloud.of(self.environ, self.quota(name, runpod.LIMITS))
                return self._clouds.setdefault(name, pods)

    def serverless(self) -> Serverless:
        """The RunPod account's endpoints."""
        return Serverless.of(self.environ, self.quota(CloudName.RUNPOD, runpod.LIMITS))

    def quota(self, name: CloudName, limits: Mapping[str, Limit]) -> Quota:
        """Beside the stacks' folders, for all of them share the account."""
        return Quota(self.paths.root.parent / ".clouds" / f"{name}.json", limits)

    def machine_host(self, cloud: CloudName, machine: Machine) -> Host:
        """The host that runs units on a machine, which need not exist any more."""
        match cloud:
            case CloudName.LOCAL:
                return LocalCloud(self.paths).host(machine)
            case CloudName.SPHERON | CloudName.RUNPOD | CloudName.HOSTS:
                raise InfraError(f"{machine.name} is reached through SSH, and the description does not say how")
