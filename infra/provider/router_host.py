"""RouterHost: the router and the edge in front of it, both units of one host.

It is there when the router answers through the edge. Which workers the router uses is Registration's;
what the edge is told is `infra.edge`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from infra.edge import ArtifactsFolder, EdgeError, EdgeSettings
from infra.errors import InfraError
from infra.hosts import HostError, Listen, Progress, Unit
from infra.nginx import configure_edge, edge_unit, edge_user, find_nginx, may_send_from
from infra.provider.readiness import Verdict, ask_router, loopback_client, until_ready
from infra.provider.resource import Condition, Found, IncompleteError, Inputs, ProviderError, UnitSeen, worst
from infra.provider.site import Site
from infra.secrets import ADMIN_KEY, API_KEY, S3_CREDENTIALS, SIGNING_KEY

ROUTER = "router"
EDGE = "edge"
READY_WITHIN_S = 60.0
STOP_GRACE_S = 15.0
SOCKET = "router.sock"


class RouterHostInputs(Inputs):
    """`keys` holds the fingerprints of the router's secrets by name, `code` the digest of `program`. `settings`
    are the router's own (`router.settings`), by name without their prefix; no secret is among them."""

    program: tuple[str, ...]
    code: str
    edge_host: str
    edge_port: int
    admin_host: str
    admin_port: int
    keys: dict[str, str]
    settings: dict[str, str] = Field(default_factory=dict)


class RouterHostState(RouterHostInputs, Found):
    url: str = ""
    admin_url: str = ""
    units: tuple[UnitSeen, ...] = ()


def reachable_url(host: str, port: int) -> str:
    """How this computer reaches a server that listens there; "everywhere" includes loopback."""
    match host:
        case "0.0.0.0":  # noqa: S104 - read from a description, not bound
            host = "127.0.0.1"
        case "::":
            host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class RouterHostResource:
    site: Site
    inputs: type[RouterHostInputs] = RouterHostInputs
    state: type[RouterHostState] = RouterHostState
    replaced_by: frozenset[str] = frozenset()

    async def ensure(
        self, inputs: RouterHostInputs, _before: RouterHostState | None, progress: Progress
    ) -> RouterHostState:
        host = self.site.router_host()
        try:
            # The run directory is in memory on most machines, and gone after a restart.
            self.site.paths.create()
            for name in (API_KEY, ADMIN_KEY, SIGNING_KEY):
                self.site.secrets.ensure(name)
            await host.ensure(self.router_unit(inputs), _named(ROUTER, progress))
            progress("edge: checking its configuration")
            edge = await configure_edge(self.edge_settings(inputs), _nginx())
            await host.ensure(edge, _named(EDGE, progress))
            async with loopback_client() as client:
                url = reachable_url(inputs.edge_host, inputs.edge_port)
                await until_ready(host, ROUTER, lambda: ask_router(client, url), READY_WITHIN_S, progress)
        except InfraError as error:
            raise IncompleteError(str(error), await self._look(_state(inputs))) from error
        return await self._look(_state(inputs))

    async def read(self, state: RouterHostState) -> RouterHostState | None:
        """Its host is this computer, which is never gone: what does not run is stopped, and repaired."""
        try:
            return await self._look(state)
        except (HostError, EdgeError) as error:
            return state.model_copy(update={"condition": Condition.UNKNOWN, "reason": str(error)})

    async def delete(self, _state: RouterHostState, progress: Progress) -> None:
        host = self.site.router_host()
        # The edge first: while it stands it speaks for a router that is going away.
        for unit in (EDGE, ROUTER):
            await host.remove(unit, _named(unit, progress))

    def router_unit(self, inputs: RouterHostInputs) -> Unit:
        secrets, paths = self.site.secrets, self.site.paths
        settings = {
            "SOCKET": str(paths.run / SOCKET),
            "ADMIN_HOST": inputs.admin_host,
            "ADMIN_PORT": str(inputs.admin_port),
            "DATA_DIR": str(paths.router / "data"),
            "API_KEY_FILE": str(secrets.path(API_KEY)),
            "ADMIN_KEY_FILE": str(secrets.path(ADMIN_KEY)),
            "SIGNING_KEY_FILE": str(secrets.path(SIGNING_KEY)),
            "PUBLIC_URL": reachable_url(inputs.edge_host, inputs.edge_port),
            **inputs.settings,
        }
        if S3_CREDENTIALS in inputs.keys:
            settings["S3_CREDENTIALS_FILE"] = str(secrets.path(S3_CREDENTIALS))
        if self._artifacts(inputs):
            settings["EDGE_SENDS_ARTIFACTS"] = "true"
        keys = " ".join(f"{name}={inputs.keys[name]}" for name in sorted(inputs.keys))
        return Unit(
            name=ROUTER,
            argv=inputs.program,
            env={f"LETTERPRESS_ROUTER_{name}": value for name, value in settings.items()},
            listens=(Listen(inputs.admin_host, inputs.admin_port, "router.admin.port"),),
            stop_grace=STOP_GRACE_S,
            config=hashlib.sha256(f"{keys} {inputs.code}".encode()).hexdigest()[:16],
        )

    def edge_settings(self, inputs: RouterHostInputs) -> EdgeSettings:
        paths = self.site.paths
        return EdgeSettings(
            host=inputs.edge_host,
            port=inputs.edge_port,
            socket=paths.run / SOCKET,
            folder=paths.router / EDGE,
            run=paths.run,
            logs=paths.logs,
            artifacts=self._artifacts(inputs),
            user=edge_user(),
        )

    def _artifacts(self, inputs: RouterHostInputs) -> ArtifactsFolder | None:
        """The images' folder, if the edge can send from it: else the router does, which costs it time."""
        folder = ArtifactsFolder(self.site.paths.router / "data" / "artifacts", self.site.paths.root)
        return folder if "S3_BUCKET" not in inputs.settings and may_send_from(folder, edge_user()) else None

    async def _look(self, state: RouterHostState) -> RouterHostState:
        host = self.site.router_host()
        described = (self.router_unit(state), edge_unit(self.edge_settings(state), _nginx()))
        units = tuple([UnitSeen.of(unit.name, await host.observe(unit.name), unit.fingerprint) for unit in described])
        condition = worst([unit.condition for unit in units])
        reason = ", ".join(f"{unit.name}: {unit.condition}" for unit in units if not unit.condition.good)
        if condition is Condition.RUNNING:
            async with loopback_client() as client:
                answer = await ask_router(client, reachable_url(state.edge_host, state.edge_port))
            if answer.verdict is not Verdict.READY:
                condition, reason = Condition.NOT_READY, answer.reason
        return state.model_copy(
            update={
                "units": units,
                "condition": condition,
                "reason": reason,
                "url": reachable_url(state.edge_host, state.edge_port),
                "admin_url": reachable_url(state.admin_host, state.admin_port),
            }
        )


def _nginx() -> Path:
    found = find_nginx()
    if found is None:
        raise ProviderError("the edge needs nginx, which is not on this machine; `make deploy` installs it")
    return found


def _named(unit: str, progress: Progress) -> Progress:
    return lambda stage: progress(f"{unit}: {stage}")


def _state(inputs: RouterHostInputs) -> RouterHostState:
    return RouterHostState.model_validate(inputs.model_dump())
