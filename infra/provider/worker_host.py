"""WorkerHost: the workers of one machine, each a unit that owns one GPU (or the CPU).

It is there when every worker says that it is ready. What failed stays where it is, running or not, with
its log: the next deploy adopts it and goes on. Renting the machine is Machine's, telling the router is
Registration's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath

from infra.clouds import CloudError, Machine, Phase
from infra.errors import InfraError
from infra.hosts import Host, HostError, Listen, Progress, Unit, UnitState
from infra.hosts.container import ContainerHost
from infra.hosts.ssh import SshHost
from infra.provider import tunnels
from infra.provider.elsewhere import (
    Elsewhere,
    host_of,
    leave_if_moved,
    prepare,
    remote_unit,
    take_leave,
    way_to,
    write_token,
)
from infra.provider.place import RouterPlace
from infra.provider.readiness import Verdict, ask_worker_on, until_ready
from infra.provider.resource import Condition, Found, IncompleteError, Inputs, ProviderError, UnitSeen, worst
from infra.provider.site import Site
from infra.provider.upgrade import Upgrade
from infra.secrets import worker_token
from infra.ssh.errors import SshError
from infra.ssh.pins import Pins
from infra.ssh.target import Patience
from infra.stack import TINY, CloudName, resolve
from worker.contract import Metadata, Tier

LOOPBACK = "127.0.0.1"
"""Workers listen nowhere else: no inference port is ever public."""

HUB_TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable
BOOTS_WITHIN_S = 1800.0
"""Spheron's readiness can take 20 minutes."""
BOOT_POLL_S = 10.0
STOP_GRACE_S = 60.0
"""A worker that drains waits up to 30 s for the generation that it has accepted, and finishes what it is at."""

OTHER_KEY = "its host key is another one than the tunnel service was told"
UNFINISHED = "its last deploy did not finish"


class WorkerInputs(Inputs):
    """One worker. `token` is its token's fingerprint; `setting` says where the stack file sets its port."""

    name: str
    device: str
    port: int
    token: str
    setting: str


class WorkerHostInputs(Inputs):
    """`machine` is the name it is rented under; `program` runs a worker, `code` is that program's digest."""

    machine: str
    cloud: CloudName
    program: tuple[str, ...]
    code: str
    model: str
    engine: str
    tier: Tier = Tier.EXACT
    warm_sizes: tuple[str, ...] = ()
    metadata: Metadata = Metadata.ALL
    blocked_share: float | None = None
    cache: str | None = None
    accept_license: bool = False
    workers: tuple[WorkerInputs, ...]
    ready_within_s: float
    elsewhere: Elsewhere | None = None


class WorkerHostState(WorkerHostInputs, Found):
    """`host_key` is the one with which the tunnel service was last told of the machine; empty if it was not."""

    units: tuple[UnitSeen, ...] = ()
    host_key: str = ""


def worker_url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def worker_unit(inputs: WorkerHostInputs, worker: WorkerInputs, root: PurePath, environ: Mapping[str, str]) -> Unit:
    """The worker as a unit of a host whose folder is `root`. Raises DescriptionError for a missing reference."""
    settings = _settings(inputs, worker, environ) | {"TOKEN_FILE": str(root / _token_file(worker))}
    if inputs.cache:
        settings["CACHE_DIR"] = resolve(inputs.cache, environ, "cache")
    return Unit(
        name=worker.name,
        argv=inputs.program,
        env={f"LETTERPRESS_WORKER_{name}": value for name, value in settings.items()},
        listens=(Listen(LOOPBACK, worker.port, worker.setting),),
        stop_grace=STOP_GRACE_S,
        # The hub's token is the user's own: handed on by name, written nowhere.
        inherits=() if inputs.model == TINY else (HUB_TOKEN,),
        # A new token, or new code after an upgrade, takes effect only in a new process.
        config=hashlib.sha256(f"{worker.token} {inputs.code}".encode()).hexdigest()[:16],
    )


def _settings(inputs: WorkerHostInputs, worker: WorkerInputs, environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker is told wherever it is."""
    settings = {
        "MODEL": resolve(inputs.model, environ, "model"),
        "ENGINE": inputs.engine,
        "TIER": inputs.tier,
        "DEVICE": worker.device,
        "HOST": LOOPBACK,
        "PORT": str(worker.port),
    }
    if inputs.model == TINY and worker.device == "cpu":
        # Tiny workers share this computer's cores, and are slower when each takes all of them.
        settings["CPU_THREADS"] = "1"
    if inputs.warm_sizes:
        settings["WARM_SIZES"] = ",".join(inputs.warm_sizes)
    if inputs.metadata is not Metadata.ALL:
        settings["METADATA"] = inputs.metadata
    if inputs.blocked_share is not None:
        settings["BLOCKED_SHARE"] = str(inputs.blocked_share)
    if inputs.accept_license:
        settings["ACCEPT_LICENSE"] = "true"
    return settings


def _token_file(worker: WorkerInputs) -> PurePath:
    return PurePath("secrets") / worker_token(worker.name)


@dataclass(frozen=True, slots=True)
class WorkerHostResource:
    site: Site
    inputs: type[WorkerHostInputs] = WorkerHostInputs
    state: type[WorkerHostState] = WorkerHostState
    replaced_by: frozenset[str] = frozenset({"machine", "cloud"})

    async def ensure(
        self, inputs: WorkerHostInputs, before: WorkerHostState | None, progress: Progress
    ) -> WorkerHostState:
        """End what is described no more, bring up the rest, and leave alone every worker that is as described."""
        machine = await self._booted(inputs, progress)
        host = await self._host(inputs)
        if host is None or machine is None:
            raise ProviderError(f"{inputs.machine}: the machine is gone; run `make deploy` again to rent it anew")
        if inputs.elsewhere:
            if before and before.elsewhere and not inputs.elsewhere.rented:
                await leave_if_moved(self.site, inputs.machine, before.elsewhere, inputs.elsewhere, progress)
            await self._prepare(inputs, inputs.elsewhere.at(machine), progress)
        described = {worker.name for worker in inputs.workers}
        for worker in before.workers if before else ():
            if worker.name not in described:
                await host.remove(worker.name, progress)
        outcomes = await asyncio.gather(
            *(self._bring_up(host, inputs, worker, progress) for worker in inputs.workers), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        unexpected = [failure for failure in failures if not isinstance(failure, InfraError)]
        if unexpected:
            raise unexpected[0]
        state = await self._look(host, _state(inputs).model_copy(update={"host_key": self._pinned(inputs)}))
        if failures:
            raise IncompleteError("\n".join(str(failure) for failure in failures), state)
        return state

    async def read(self, state: WorkerHostState) -> WorkerHostState | None:
        try:
            machine = await self.site.cloud(state.cloud).find(state.machine)
            if machine is None:
                return None
            host = self._host_on(state, machine, Patience(reach_s=0.0))
            return await self._reached(await self._look(host, state), machine)
        except (CloudError, HostError) as error:
            return state.model_copy(update={"condition": Condition.UNKNOWN, "reason": str(error)})

    async def delete(self, state: WorkerHostState, progress: Progress) -> None:
        if state.elsewhere and state.elsewhere.rented:
            await tunnels.remove(
                self._router(state.elsewhere), state.machine, progress
            )  # all else goes with the machine
            return
        if state.elsewhere:
            await take_leave(self.site, state.machine, state.elsewhere, progress)
            return
        host = await self._host(state)
        if host:  # without its machine there is nothing left of it
            await asyncio.gather(*(host.remove(worker.name, progress) for worker in state.workers))

    def _router(self, elsewhere: Elsewhere) -> RouterPlace:
        return RouterPlace(self.site, elsewhere.router)

    async def _host(self, inputs: WorkerHostInputs, patience: Patience = Patience()) -> Host | None:  # noqa: B008 - a value
        machine = await self.site.cloud(inputs.cloud).find(inputs.machine)
        return self._host_on(inputs, machine, patience) if machine else None

    def _host_on(self, inputs: WorkerHostInputs, machine: Machine, patience: Patience) -> Host:
        if inputs.elsewhere:
            return host_of(self.site, inputs.machine, inputs.elsewhere.at(machine).access, lambda _: None, patience)
        return self.site.machine_host(inputs.cloud, machine)

    async def _booted(self, inputs: WorkerHostInputs, progress: Progress) -> Machine | None:
        """The machine, once its cloud says that it runs and where; None if it is gone.

        Raises IncompleteError if it takes longer than BOOTS_WITHIN_S: it is kept, and waited for again.
        """
        cloud, clock = self.site.cloud(inputs.cloud), asyncio.get_running_loop().time
        begun = clock()
        while True:
            machine = await cloud.find(inputs.machine)
            rented = inputs.elsewhere is not None and inputs.elsewhere.rented
            if machine is None or not rented or (machine.address and machine.phase is not Phase.BOOTING):
                return machine
            waited = clock() - begun
            if waited > BOOTS_WITHIN_S:
                said = f"{inputs.machine}: {inputs.cloud} has not booted it within {waited / 60:.0f} minutes"
                state = _state(inputs).model_copy(update={"condition": Condition.NOT_READY, "reason": said})
                raise IncompleteError(
                    f"{said}. It is paid for: `make deploy` waits on, `make destroy` gives it back", state
                )
            progress(f"{inputs.cloud} boots it ({waited:.0f} s)")
            await asyncio.sleep(BOOT_POLL_S)

    async def _prepare(self, inputs: WorkerHostInputs, elsewhere: Elsewhere, progress: Progress) -> None:
        """Raises IncompleteError: what was put on the machine so far is remembered, to be gone on with or removed."""
        ports = {worker.name: worker.port for worker in inputs.workers}
        model = resolve(inputs.model, self.site.environ, "model")
        try:
            await prepare(
                self.site,
                inputs.machine,
                elsewhere,
                model,
                inputs.cache,
                inputs.accept_license,
                ports,
                progress,
            )
        except InfraError as error:
            state = _state(inputs).model_copy(update={"condition": Condition.NOT_READY, "reason": str(error)})
            raise IncompleteError(str(error), state) from error

    def _unit(self, host: Host, inputs: WorkerHostInputs, worker: WorkerInputs) -> Unit:
        if inputs.elsewhere is None:
            return worker_unit(inputs, worker, host.root, self.site.environ)
        return remote_unit(
            worker.name,
            _settings(inputs, worker, self.site.environ),
            worker.device,
            Listen(LOOPBACK, worker.port, worker.setting),
            worker.token,
            inputs.elsewhere,
            self.site,
            inputs.cache,
        )

    async def _bring_up(self, host: Host, inputs: WorkerHostInputs, worker: WorkerInputs, progress: Progress) -> None:
        def say(stage: str) -> None:
            progress(stage if len(inputs.workers) == 1 else f"{worker.name}: {stage}")

        token = self.site.secrets.ensure(worker_token(worker.name))
        unit = self._unit(host, inputs, worker)

        async def begin() -> None:
            if isinstance(host, (SshHost, ContainerHost)):
                await write_token(host, worker.name, token)
            else:
                await host.write(_token_file(worker), token.encode())
            await host.ensure(unit, say)
            await ready()

        async def ready() -> None:
            await until_ready(host, worker.name, lambda: ask_worker_on(host, worker.port), inputs.ready_within_s, say)

        if inputs.elsewhere and isinstance(host, (SshHost, ContainerHost)):
            seen = await host.observe(worker.name)
            serves = seen.state is UnitState.RUNNING and seen.fingerprint != unit.fingerprint
            if serves and (await ask_worker_on(host, worker.port)).verdict is Verdict.READY:
                await Upgrade(
                    self._router(inputs.elsewhere), inputs.elsewhere.admin_url, worker.name, host, begin, ready, say
                ).run()
                return
        await begin()

    async def _look(self, host: Host, state: WorkerHostState) -> WorkerHostState:
        units = await asyncio.gather(*(self._see(host, state, worker) for worker in state.workers))
        condition = worst([unit.condition for unit in units])
        reason = ", ".join(f"{unit.name}: {unit.condition}" for unit in units if not unit.condition.good)
        if condition.good and state.host_key != self._pinned(state):
            condition, reason = Condition.DIFFERENT, OTHER_KEY if state.host_key else UNFINISHED
        return state.model_copy(update={"units": tuple(units), "condition": condition, "reason": reason})

    async def _reached(self, state: WorkerHostState, machine: Machine) -> WorkerHostState:
        """With whether the tunnel service runs and is told of the machine as it is: a computer that was started again
        has no such service, a destroy that was broken off has closed ways whose tunnel was down, a deploy that stopped
        early has told it nothing, and a rented machine may come back at another address.
        """
        if not state.condition.good or state.elsewhere is None:
            return state
        router = replace(self._router(state.elsewhere), patience=Patience(reach_s=0.0))
        try:
            told, stopped = await tunnels.told_of(router, state.machine), await tunnels.stopped(router)
        except SshError:  # the router's host is away, which is RouterHost's to say
            return state
        ports, access = {worker.name: worker.port for worker in state.workers}, state.elsewhere.at(machine).access
        if told is None or told.workers != ports:
            said = "the tunnel service does not know the way to its workers"
        elif told.host_key != self._pinned(state):
            said = OTHER_KEY
        elif told != way_to(state.machine, access, told.host_key, ports):
            said = f"the tunnel service knows it at {told.user}@{told.host}:{told.port}, where it is no more"
        elif stopped:
            said = "the tunnel service does not run"
        else:
            return state
        return state.model_copy(update={"condition": Condition.DIFFERENT, "reason": said})

    def _pinned(self, inputs: WorkerHostInputs) -> str:
        """The host key by which a machine elsewhere is known now."""
        return (Pins(self.site.paths.known_hosts).get(inputs.machine) or "") if inputs.elsewhere else ""

    async def _see(self, host: Host, state: WorkerHostState, worker: WorkerInputs) -> UnitSeen:
        described = self._unit(host, state, worker)
        seen = UnitSeen.of(worker.name, await host.observe(worker.name), described.fingerprint)
        if seen.condition is Condition.RUNNING:
            answer = await ask_worker_on(host, worker.port)
            if answer.verdict is not Verdict.READY:
                return seen.model_copy(update={"condition": Condition.NOT_READY})
        return seen


def _state(inputs: WorkerHostInputs) -> WorkerHostState:
    return WorkerHostState.model_validate(inputs.model_dump())
