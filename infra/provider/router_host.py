"""RouterHost: the router and the edge in front of it, both units of one host.

It is there when the router answers through the edge. Which workers the router uses is Registration's;
what the edge is told is `infra.edge.config`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from pydantic import Field

from infra.edge import certbot
from infra.edge.certificate import placeholder, trusting
from infra.edge.config import ArtifactsFolder, EdgeError, EdgeSettings, Tls
from infra.edge.nginx import (
    configure_edge,
    edge_unit,
    edge_user,
    find_certbot,
    find_nginx,
    may_send_from,
    open_to_edge,
    prune_certificates,
)
from infra.errors import InfraError
from infra.files import replace_file
from infra.hosts import HostError, Listen, Progress, Unit
from infra.provider import tunnels
from infra.provider.readiness import ANSWER_S, Verdict, ask_router, loopback_client, until_ready
from infra.provider.resource import Condition, Found, IncompleteError, Inputs, ProviderError, UnitSeen, worst
from infra.provider.site import Site
from infra.secrets import ADMIN_KEY, API_KEY, S3_CREDENTIALS, SIGNING_KEY, TLS_CERTIFICATE, TLS_KEY

ROUTER = "router"
EDGE = "edge"
READY_WITHIN_S = 60.0
STOP_GRACE_S = 15.0
SOCKET = "router.sock"
HTTPS = 443
CERTBOT_ADVICE = "install it (Debian, Ubuntu: apt-get install certbot) and deploy again"
ACME_SERVER = "LETTERPRESS_ACME_SERVER"
"""An ACME directory in the place of Let's Encrypt's: its staging one, or a company's own."""


class TlsInputs(Inputs):
    """HTTPS at the edge, by the user's `own` certificate (among the keys) or by certbot's for `domain`."""

    domain: str = ""
    email: str = ""
    own: bool
    plain_port: int | None = None


class RouterHostInputs(Inputs):
    """`keys` holds the fingerprints of the router's secrets by name, `code` the digest of `program`. `settings`
    are the router's own (`router.settings`), by name without their prefix; no secret is among them. `tunnels` says
    that workers are reached through the tunnel service."""

    program: tuple[str, ...]
    code: str
    edge_host: str
    edge_port: int
    tls: TlsInputs | None = None
    admin_host: str
    admin_port: int
    keys: dict[str, str]
    settings: dict[str, str] = Field(default_factory=dict)
    tunnels: bool = False


class RouterHostState(RouterHostInputs, Found):
    url: str = ""
    admin_url: str = ""
    units: tuple[UnitSeen, ...] = ()


def reachable_url(host: str, port: int, scheme: str = "http") -> str:
    """How this computer reaches a server that listens there; "everywhere" includes loopback."""
    match host:
        case "0.0.0.0":  # noqa: S104 - read from a description, not bound
            host = "127.0.0.1"
        case "::":
            host = "::1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def public_url(inputs: RouterHostInputs) -> str:
    """What clients call the edge by."""
    if inputs.tls is None:
        return reachable_url(inputs.edge_host, inputs.edge_port)
    if not inputs.tls.domain:
        return reachable_url(inputs.edge_host, inputs.edge_port, "https")
    return f"https://{inputs.tls.domain}" + ("" if inputs.edge_port == HTTPS else f":{inputs.edge_port}")


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
            self.prepare_certificate(inputs)
            settings, nginx = self.edge_settings(inputs), _nginx()
            edge = await configure_edge(settings, nginx)
            await host.ensure(edge, _named(EDGE, progress))
            prune_certificates(settings)
            if authority := self.authority(inputs):
                await host.ensure(certbot.unit(authority), _named(certbot.NAME, progress))
            else:
                await host.remove(certbot.NAME, _named(certbot.NAME, progress))
            async with self._edge_client(inputs) as client:
                url = self._near_url(inputs)
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

    async def delete(self, state: RouterHostState, progress: Progress) -> None:
        host = self.site.router_host()
        # The edge first: while it stands it speaks for a router that is going away.
        for unit in (certbot.NAME, EDGE, ROUTER):
            await host.remove(unit, _named(unit, progress))
        if state.tunnels:
            await tunnels.end(self.site, _named(tunnels.UNIT, progress))

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
            "PUBLIC_URL": public_url(inputs),
            **inputs.settings,
        }
        if inputs.tunnels:
            settings["TUNNELS_STATUS_FILE"] = str(paths.router / "tunnels" / "status.json")
        if S3_CREDENTIALS in inputs.keys:
            settings["S3_CREDENTIALS_FILE"] = str(secrets.path(S3_CREDENTIALS))
        if self._artifacts(inputs):
            settings["EDGE_SENDS_ARTIFACTS"] = "true"
        # A new certificate is the edge's business alone.
        known = sorted(inputs.keys.keys() - {TLS_CERTIFICATE, TLS_KEY})
        keys = " ".join(f"{name}={inputs.keys[name]}" for name in known)
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
            tls=self._tls(inputs),
        )

    def prepare_certificate(self, inputs: RouterHostInputs) -> None:
        """Put what the edge is to show where nginx reads it; beside what it shows now, so that either can be read."""
        tls = self._tls(inputs)
        if tls is None or inputs.tls is None:
            return
        tls.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if inputs.tls.own:
            secrets = self.site.secrets
            replace_file(tls.certificate, secrets.path(TLS_CERTIFICATE).read_bytes())
            replace_file(tls.key, secrets.path(TLS_KEY).read_bytes())
            return
        authority = self.authority(inputs)
        if authority is None:
            return
        if find_certbot() is None:
            raise ProviderError(f"router.edge.tls.domain wants certbot, which is not on this machine; {CERTBOT_ADVICE}")
        Path(authority.challenges).mkdir(parents=True, exist_ok=True)
        open_to_edge(Path(authority.challenges), edge_user())
        if not tls.certificate.exists():
            made = placeholder(inputs.tls.domain, datetime.now(UTC))
            replace_file(tls.key, made.key)
            replace_file(tls.certificate, made.chain)
        replace_file(Path(authority.hook), certbot.hook(authority, _nginx()).encode(), 0o700)

    def authority(self, inputs: RouterHostInputs) -> certbot.Authority | None:
        """Who signs the edge's certificate; None where the user has one, or wants none."""
        if inputs.tls is None or inputs.tls.own:
            return None
        return certbot.Authority(
            program=find_certbot() or Path("certbot"),
            domain=inputs.tls.domain,
            email=inputs.tls.email,
            folder=self.site.paths.router / EDGE,
            challenges=self.site.paths.run / "acme",
            server=self.site.environ.get(ACME_SERVER, ""),
        )

    def _tls(self, inputs: RouterHostInputs) -> Tls | None:
        if inputs.tls is None:
            return None
        folder = self.site.paths.router / EDGE / "tls"
        if not inputs.tls.own:
            challenges = self.site.paths.run / "acme"
            return Tls(folder / "chain.pem", folder / "key.pem", certbot.NAME, inputs.tls.plain_port, challenges)
        # By content: what is in force keeps its files until its successor has been accepted.
        mark = f"{inputs.keys[TLS_CERTIFICATE]}-{inputs.keys[TLS_KEY]}"
        return Tls(folder / f"{mark}.pem", folder / f"{mark}.key", mark, inputs.tls.plain_port)

    def _near_url(self, inputs: RouterHostInputs) -> str:
        return reachable_url(inputs.edge_host, inputs.edge_port, "https" if inputs.tls else "http")

    def _edge_client(self, inputs: RouterHostInputs) -> httpx.AsyncClient:
        tls = self._tls(inputs)
        if tls is None:
            return loopback_client()
        return httpx.AsyncClient(timeout=ANSWER_S, trust_env=False, verify=trusting(tls.certificate.read_bytes()))

    def _artifacts(self, inputs: RouterHostInputs) -> ArtifactsFolder | None:
        """The images' folder, if the edge can send from it: else the router does, which costs it time."""
        folder = ArtifactsFolder(self.site.paths.router / "data" / "artifacts", self.site.paths.root)
        return folder if "S3_BUCKET" not in inputs.settings and may_send_from(folder, edge_user()) else None

    async def _look(self, state: RouterHostState) -> RouterHostState:
        host = self.site.router_host()
        described = [self.router_unit(state), edge_unit(self.edge_settings(state), _nginx())]
        if authority := self.authority(state):
            described.append(certbot.unit(authority))
        units = tuple([UnitSeen.of(unit.name, await host.observe(unit.name), unit.fingerprint) for unit in described])
        condition = worst([unit.condition for unit in units])
        reason = ", ".join(f"{unit.name}: {unit.condition}" for unit in units if not unit.condition.good)
        if condition is Condition.RUNNING:
            async with self._edge_client(state) as client:
                answer = await ask_router(client, self._near_url(state))
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


def _nginx() -> Path:
    found = find_nginx()
    if found is None:
        raise ProviderError("the edge needs nginx, which is not on this machine; `make deploy` installs it")
    return found


def _named(unit: str, progress: Progress) -> Progress:
    return lambda stage: progress(f"{unit}: {stage}")


def _state(inputs: RouterHostInputs) -> RouterHostState:
    return RouterHostState.model_validate(inputs.model_dump())
