"""RouterHost: the router and the edge in front of it, all of them units of one host.

It is there when the router answers through the edge. Which workers the router uses is Registration's; what the units
are is `router_units`', what a host needs for them `router_here`'s and `router_there`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Protocol

import httpx

from infra.edge import certbot
from infra.edge.certificate import trusting
from infra.edge.config import EdgeError
from infra.errors import InfraError
from infra.hosts import Host, HostError, Progress, Unit
from infra.hosts.layout import Layout, layout_here
from infra.provider import tunnels
from infra.provider.place import RouterPlace, UntilItAnswers
from infra.provider.readiness import (
    ANSWER_S,
    Verdict,
    ask_router,
    ask_router_on,
    loopback_client,
    until_ready,
)
from infra.provider.resource import Condition, IncompleteError, UnitSeen, worst
from infra.provider.router_here import Here
from infra.provider.router_inputs import RouterHostInputs, RouterHostState, near_url, public_url, reachable_url
from infra.provider.router_leave import leave_if_moved, take_leave
from infra.provider.router_there import There
from infra.provider.router_units import (
    REDIS,
    all_names,
    consumer_units,
    redis_unit,
    router_units,
)
from infra.provider.site import Site
from infra.secrets import TLS_CERTIFICATE
from infra.ssh.target import Patience

READY_WITHIN_S = 60.0
ACME_SERVER = "LETTERPRESS_ACME_SERVER"
"""An ACME directory in the place of Let's Encrypt's: its staging one, or a company's own."""


class Front(Protocol):
    """What differs between a router here and one on a machine of its own."""

    @property
    def place(self) -> RouterPlace: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def host(self) -> Host: ...

    @property
    def sends_artifacts(self) -> bool:
        """Whether the edge can send the images itself."""
        ...

    async def prepare(self, progress: Progress, /) -> None:
        """Everything that its units stand on."""
        ...

    def redis(self) -> PurePath: ...

    def edge(self) -> Unit: ...

    def certbot(self) -> Unit | None: ...

    async def look_ahead(self) -> None:
        """What has to be here before the edge can be asked."""
        ...

    async def put_edge(self, progress: Progress, until_it_answers: UntilItAnswers, /) -> None:
        """The edge with its configuration and its certificate, in force; what nginx refuses changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class RouterHostResource:
    site: Site
    inputs: type[RouterHostInputs] = RouterHostInputs
    state: type[RouterHostState] = RouterHostState
    replaced_by: frozenset[str] = frozenset()

    async def ensure(
        self, inputs: RouterHostInputs, before: RouterHostState | None, progress: Progress
    ) -> RouterHostState:
        front = self.front(inputs)
        try:
            if before:
                await leave_if_moved(front.place, before, progress)
            await front.prepare(progress)
            host = front.host
            await self._end_undescribed(host, inputs, before, progress)
            if redis := self.redis_unit(inputs):
                await host.ensure(redis, _named(REDIS, progress))
            for number, unit in enumerate(self.units_of_routers(inputs)):
                await host.ensure(unit, _named(unit.name, progress))
                if inputs.processes > 1:
                    # One after the other: those who are in the middle of something turn to the next.
                    asking = partial(ask_router_on, host, inputs.admin_port + number)
                    await until_ready(host, unit.name, asking, READY_WITHIN_S, progress)
            for unit in consumer_units(inputs, front.layout):
                await host.ensure(unit, _named(unit.name, progress))
            await front.put_edge(progress, lambda unit: self._until_it_answers(front.host, inputs, unit, progress))
            if renewing := front.certbot():
                await host.ensure(renewing, _named(certbot.NAME, progress))
            else:
                await host.remove(certbot.NAME, lambda _: None)
        except InfraError as error:
            raise IncompleteError(str(error), await self._looked(_state(inputs), str(error))) from error
        return await self._look(_state(inputs))

    async def read(self, state: RouterHostState) -> RouterHostState | None:
        """Its host is never gone: what does not run is stopped, and repaired."""
        try:
            return await self._look(state, Patience(reach_s=0.0))
        except (HostError, EdgeError) as error:
            return state.model_copy(update={"condition": Condition.UNKNOWN, "reason": str(error)})

    async def delete(self, state: RouterHostState, progress: Progress) -> None:
        if state.host:
            await take_leave(RouterPlace(self.site, state.host), state.host, progress)
            return
        host = self.front(state).host
        # The edge first: while it stands it speaks for a router that is going away.
        for unit in all_names(state):
            await host.remove(unit, _named(unit, progress))
        if state.tunnels:
            await tunnels.end(self.front(state).place, _named(tunnels.UNIT, progress))

    def front(self, inputs: RouterHostInputs, patience: Patience = Patience()) -> Front:  # noqa: B008 - a value
        place = RouterPlace(self.site, inputs.host, patience)
        kind = There if inputs.host else Here
        return kind(place, inputs, self.site.environ.get(ACME_SERVER, ""))

    def units_of_routers(self, inputs: RouterHostInputs) -> tuple[Unit, ...]:
        front = self.front(inputs)
        return router_units(inputs, front.layout, sends_artifacts=front.sends_artifacts)

    def redis_unit(self, inputs: RouterHostInputs) -> Unit | None:
        front = self.front(inputs)
        if not inputs.redis_port:
            return None
        return redis_unit(inputs, front.layout, front.redis())

    async def _end_undescribed(
        self, host: Host, inputs: RouterHostInputs, before: RouterHostState | None, progress: Progress
    ) -> None:
        """Processes that were described before and are not now."""
        wanted = set(all_names(inputs))
        for name in all_names(before) if before else ():
            if name not in wanted:
                await host.remove(name, _named(name, progress))

    async def _until_it_answers(self, host: Host, inputs: RouterHostInputs, unit: str, progress: Progress) -> None:
        async with self._edge_client(inputs) as client:
            url = near_url(inputs)
            await until_ready(host, unit, lambda: ask_router(client, url), READY_WITHIN_S, progress)

    def _edge_client(self, inputs: RouterHostInputs) -> httpx.AsyncClient:
        if inputs.tls is None:
            return loopback_client()
        paths = self.site.paths
        own = inputs.tls.own
        shown = self.site.secrets.path(TLS_CERTIFICATE) if own else layout_here(paths).edge / "tls" / "chain.pem"
        return httpx.AsyncClient(timeout=ANSWER_S, trust_env=False, verify=trusting(shown.read_bytes()))

    async def _looked(self, state: RouterHostState, why: str) -> RouterHostState:
        """What there is after a failure; a machine that does not even answer tells nothing."""
        try:
            found = await self._look(state, Patience(reach_s=0.0))
        except (InfraError, OSError):
            found = state.model_copy(update={"condition": Condition.UNKNOWN})
        if found.condition.good:
            found = found.model_copy(update={"condition": Condition.NOT_READY})
        return found.model_copy(update={"reason": found.reason or why})

    async def _look(self, state: RouterHostState, patience: Patience = Patience()) -> RouterHostState:  # noqa: B008 - a value
        front = self.front(state, patience)
        host = front.host
        described = list(self._described(state, front))
        await front.look_ahead()
        seen = [await host.observe(unit.name) for unit in described]
        units = tuple(UnitSeen.of(unit.name, one, unit.fingerprint) for unit, one in zip(described, seen, strict=True))
        condition = worst([unit.condition for unit in units])
        reason = ", ".join(f"{unit.name}: {unit.condition}" for unit in units if not unit.condition.good)
        if condition is Condition.RUNNING:
            async with self._edge_client(state) as client:
                answer = await ask_router(client, near_url(state))
            if answer.verdict is not Verdict.READY:
                condition, reason = Condition.NOT_READY, answer.reason
        return state.model_copy(
            update={
                "units": units,
                "condition": condition,
                "reason": reason,
                "url": public_url(state),
                "admin_url": reachable_url(state.admin_host, state.admin_port),
            }
        )

    def _described(self, state: RouterHostState, front: Front) -> Sequence[Unit]:
        found = [*self.units_of_routers(state), front.edge(), *consumer_units(state, front.layout)]
        return [*found, *(unit for unit in (self.redis_unit(state), front.certbot()) if unit)]


def _named(unit: str, progress: Progress) -> Progress:
    return lambda stage: progress(f"{unit}: {stage}")


def _state(inputs: RouterHostInputs) -> RouterHostState:
    return RouterHostState.model_validate(inputs.model_dump())
