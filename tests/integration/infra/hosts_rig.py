"""A stack on test machines without the Pulumi engine: every resource of its program brought about in its place.

What an engine adds (previews, a state, one process for all) is other tests'; what is tried here is what the resources
do on machines, in a third of the time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.deployment import Deployment
from infra.emulate.hosts.machine import TestMachine
from infra.paths import StackPaths
from infra.planning.planner import Plan, plan
from infra.planning.program import Declared
from infra.provider.machine import MachineResource
from infra.provider.registration import RegistrationResource
from infra.provider.resource import Found, IncompleteError, Kind
from infra.provider.router_host import RouterHostResource
from infra.provider.router_inputs import RouterHostState
from infra.provider.site import Site
from infra.provider.worker_host import WorkerHostResource, WorkerHostState
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.stack import StackDescription, parse
from router.client import AdminClient, RouterClient
from router.contract import WorkerHealth
from tests.hosts import FIRST_PORT, machine
from tests.hosts.rented import PACED
from tests.ports import free_ports

NAME = "hostsrig"
HEAD = """\
name: hostsrig
cloud: hosts
model: tiny
image: {{pull: "{image}"}}
engine: reference
router: {{edge: {{port: {edge}}}, admin: {{port: {admin}}}, webhook_allow: [{allow}]}}
pools:
  interactive: {{machines: {count}, first_port: {first}, warm_sizes: [256x256]}}
hosts:
"""
BROKEN = "import sys\nprint('no such engine', flush=True)\nsys.exit(78)\n"
PROGRAMS = {
    "registry.test/worker:1": PACED,
    "registry.test/worker:2": PACED,
    "registry.test/worker:broken": BROKEN,
}
ENOUGH_S = 60
ORDER = (Kind.ROUTER_HOST, Kind.MACHINE, Kind.WORKER_HOST, Kind.REGISTRATION)


@dataclass
class HostsRig:
    """`said` holds what was told as progress, `failed` why resources could not be brought about, by name."""

    folder: Path
    machines: dict[str, TestMachine]
    ports: Sequence[int]
    image: str = "registry.test/worker:1"
    allow: str = "192.0.2.1/32"
    """A setting of the router's: another one replaces it."""
    disk_gib: float = 0.1
    """What each machine is to have free."""
    known: dict[str, Found] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> StackPaths:
        return StackPaths.of(NAME, self.folder / "home")

    def description(self) -> StackDescription:
        edge, admin = self.ports
        text = HEAD.format(
            image=self.image, allow=self.allow, edge=edge, admin=admin, first=FIRST_PORT, count=len(self.machines)
        )
        for name, one in self.machines.items():
            text += (
                f"  {name}: {{address: {one.address}, key: {self.folder / 'own' / LOGIN}, disk_gib: {self.disk_gib}}}\n"
            )
        return parse(text, "stack.yaml", self.folder)

    async def plan(self) -> Plan:
        decided = await plan(self.description(), self.paths)
        decided.keep(self.paths)
        return decided

    async def up(self) -> None:
        """As the engine does: each resource as soon as those that it depends on are there, and not without them."""
        decided, site = await self.plan(), self.site()
        self.failed.clear()
        done: dict[str, asyncio.Task[bool]] = {}

        async def ensure(one: Declared) -> bool:
            if not all([await done[name] for name in one.depends_on]):
                return False
            try:
                self.known[one.name] = await self._ensure(site, one)
            except IncompleteError as error:
                self.failed[one.name], self.known[one.name] = str(error), error.state
                return False
            return True

        try:
            async with asyncio.TaskGroup() as tasks:
                for one in decided.declared:
                    done[one.name] = tasks.create_task(ensure(one))
        finally:
            site.connections.close()

    async def look(self) -> None:
        """As the engine does before each deploy: what is known of the machines' workers is what is there now."""
        site = self.site()
        try:
            for name, state in self.known.items():
                if isinstance(state, WorkerHostState):
                    found = await WorkerHostResource(site).read(state)
                    assert found
                    self.known[name] = found
        finally:
            site.connections.close()

    async def down(self) -> None:
        site = self.site()
        try:
            decided = await self.plan()
            for kind in reversed(ORDER):
                gone = [
                    _resource(site, kind).delete(self.known.pop(one.name), self.said.append)
                    for one in decided.declared
                    if one.kind is kind and one.name in self.known
                ]
                await asyncio.gather(*gone)
        finally:
            site.connections.close()

    def worker_host(self) -> WorkerHostState:
        """What is known of the one machine's workers."""
        (state,) = (state for state in self.known.values() if isinstance(state, WorkerHostState))
        return state

    async def until(self, *healths: WorkerHealth) -> None:
        """The router believes that of its workers."""
        async with asyncio.timeout(ENOUGH_S), self.admin() as admin:
            while [one.health for one in await admin.workers()] != list(healths):  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.2)

    def site(self) -> Site:
        """As each command has one of its own."""
        return Site(self.paths, os.environ)

    def router_pid(self) -> int | None:
        state = self.known["router"]
        assert isinstance(state, RouterHostState)
        return next(unit.pid for unit in state.units if unit.name == "router")

    def admin(self) -> AdminClient:
        return AdminClient(f"http://127.0.0.1:{self.ports[1]}")

    def client(self) -> RouterClient:
        endpoint = Deployment(self.description(), self.paths).endpoint
        return RouterClient(endpoint.near, endpoint.api_key_file.read_text().strip(), endpoint.transport)

    async def _ensure(self, site: Site, one: Declared) -> Found:
        def say(stage: str) -> None:
            self.said.append(f"{one.name}: {stage}")

        found: Found = await _resource(site, one.kind).ensure(one.inputs, self.known.get(one.name), say)
        return found


def _resource(site: Site, kind: Kind) -> Any:  # noqa: ANN401 - a protocol's variables differ for each
    match kind:
        case Kind.ROUTER_HOST:
            return RouterHostResource(site)
        case Kind.MACHINE:
            return MachineResource(site.cloud, site.public_key)
        case Kind.WORKER_HOST:
            return WorkerHostResource(site)
        case _:
            return RegistrationResource(site)


@asynccontextmanager
async def hosts_rig(folder: Path, count: int) -> AsyncIterator[HostsRig]:
    """Machines that run; nothing is brought up. Ends with all of it gone."""
    with ExitStack() as stack:
        public = public_line(ensure_key(folder / "own", LOGIN), "operator")
        machines = {f"h{number}": stack.enter_context(machine(public)) for number in range(1, count + 1)}
        for one in machines.values():
            one.told(programs=PROGRAMS)
        rig = HostsRig(folder, machines, free_ports(2))
        try:
            yield rig
        finally:
            await rig.down()
