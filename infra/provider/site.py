"""Where a stack's resources are: which cloud a name means, which host a machine or the router runs on.

The stack's folder reaches the provider by its environment, never through a property: a state that is read
elsewhere must not lead to somebody's folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infra.clouds import Cloud, Machine
from infra.clouds.local import LocalCloud
from infra.errors import InfraError
from infra.hosts import Host
from infra.hosts.local import LocalHost
from infra.paths import StackPaths
from infra.secrets import SecretStore
from infra.stack import CloudName

STACK = "LETTERPRESS_STACK"
"""Names the stack that the provider works for; `LETTERPRESS_HOME` and `LETTERPRESS_RUN` say where it lies."""


@dataclass(frozen=True, slots=True)
class Site:
    """One stack's surroundings. `environ` is where `${NAME}` references are looked up."""

    paths: StackPaths
    environ: Mapping[str, str]

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> Site:
        """The site that the environment names. Raises InfraError if it names none."""
        if not environ.get(STACK):
            raise InfraError(f"{STACK} is not set: this provider is started by `letterpress`, not by hand")
        return cls(StackPaths.of(environ[STACK]), environ)

    @property
    def secrets(self) -> SecretStore:
        return SecretStore(self.paths.secrets)

    def cloud(self, name: CloudName) -> Cloud:
        match name:
            case CloudName.LOCAL:
                return LocalCloud(self.paths)

    def machine_host(self, cloud: CloudName, machine: Machine) -> Host:
        """The host that runs units on a machine, which need not exist any more."""
        match cloud:
            case CloudName.LOCAL:
                return LocalCloud(self.paths).host(machine)

    def router_host(self) -> LocalHost:
        """The router and its edge run on this computer."""
        return LocalHost("router", self.paths.router, self.paths.logs)
