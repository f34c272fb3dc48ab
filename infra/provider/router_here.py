"""A router on this computer: its edge's configuration and certificate where nginx reads them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.edge import certbot
from infra.edge.certificate import placeholder
from infra.edge.config import EdgeSettings
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
from infra.files import replace_file
from infra.hosts import Progress, Unit
from infra.hosts.layout import Layout
from infra.hosts.local import LocalHost
from infra.provider.place import RouterPlace, UntilItAnswers
from infra.provider.resource import ProviderError
from infra.provider.router_inputs import RouterHostInputs
from infra.provider.router_units import ROUTER, artifacts_folder, authority, edge_settings, edge_tls, redis_config
from infra.secrets import REDIS_PASSWORD, ROUTER_KEYS, TLS_CERTIFICATE, TLS_KEY
from infra.setup.for_tests import find_redis

CERTBOT_ADVICE = "install it (Debian, Ubuntu: apt-get install certbot) and deploy again"


@dataclass(frozen=True, slots=True)
class Here:
    """`acme` is another authority than Let's Encrypt, empty for that one."""

    place: RouterPlace
    inputs: RouterHostInputs
    acme: str

    @property
    def layout(self) -> Layout:
        return self.place.layout

    @property
    def host(self) -> LocalHost:
        paths = self.place.site.paths
        return LocalHost("router", paths.router, paths.logs)

    @property
    def sends_artifacts(self) -> bool:
        """Whether the edge can send the images: else the router does, which costs it time."""
        return "S3_BUCKET" not in self.inputs.settings and may_send_from(artifacts_folder(self.layout), edge_user())

    @property
    def settings(self) -> EdgeSettings:
        return edge_settings(self.inputs, self.layout, edge_user(), sends_artifacts=self.sends_artifacts)

    async def prepare(self, _progress: Progress) -> None:
        # The run directory is in memory on most machines, and gone after a restart.
        site = self.place.site
        site.paths.create()
        for name in ROUTER_KEYS:
            site.secrets.ensure(name)
        if self.inputs.redis_port:
            self.layout.redis.mkdir(mode=0o700, parents=True, exist_ok=True)
            config = redis_config(self.inputs, self.layout, site.secrets.ensure(REDIS_PASSWORD))
            replace_file(self.layout.redis / "redis.conf", config.encode())

    def edge(self) -> Unit:
        return edge_unit(self.settings, nginx())

    async def look_ahead(self) -> None:
        """Nothing to fetch: it lies here."""

    async def put_edge(self, progress: Progress, until_it_answers: UntilItAnswers) -> None:
        progress("edge: checking its configuration")
        self.prepare_certificate()
        settings = self.settings
        unit = await configure_edge(settings, nginx())
        await self.host.ensure(unit, lambda stage: progress(f"edge: {stage}"))
        prune_certificates(settings)
        await until_it_answers(ROUTER)

    def redis(self) -> Path:
        found = find_redis()
        if found is None:
            raise ProviderError(
                "router.redis: here wants redis-server on this computer; install it (apt-get install redis-server) and "
                "deploy again"
            )
        return found

    def authority(self) -> certbot.Authority | None:
        return authority(self.inputs, self.layout, find_certbot() or Path("certbot"), self.acme)

    def certbot(self) -> Unit | None:
        signs = self.authority()
        return certbot.unit(signs) if signs else None

    def prepare_certificate(self) -> None:
        """Put what the edge is to show where nginx reads it; beside what it shows now, so that either can be read."""
        tls = edge_tls(self.inputs, self.layout)
        if tls is None or self.inputs.tls is None:
            return
        tls.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.inputs.tls.own:
            secrets = self.place.site.secrets
            replace_file(tls.certificate, secrets.path(TLS_CERTIFICATE).read_bytes())
            replace_file(tls.key, secrets.path(TLS_KEY).read_bytes())
            return
        signs = self.authority()
        if signs is None:
            return
        if find_certbot() is None:
            raise ProviderError(f"router.edge.tls.domain wants certbot, which is not on this machine; {CERTBOT_ADVICE}")
        Path(signs.challenges).mkdir(parents=True, exist_ok=True)
        open_to_edge(Path(signs.challenges), edge_user())
        if not tls.certificate.exists():
            made = placeholder(self.inputs.tls.domain, datetime.now(UTC))
            replace_file(tls.key, made.key)
            replace_file(tls.certificate, made.chain)
        replace_file(Path(signs.hook), certbot.hook(signs, nginx()).encode(), 0o700)


def nginx() -> Path:
    found = find_nginx()
    if found is None:
        raise ProviderError("the edge needs nginx, which is not on this machine; `make deploy` installs it")
    return found
