"""A router on a machine of its own: what is put there, and its edge's configuration with a way back.

The steps that make the machine fit for it are `infra.bootstrap.router`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath, PurePosixPath

from infra import remains
from infra.bootstrap.router.code import build_wheel
from infra.bootstrap.router.machine import RouterMachine
from infra.bootstrap.router.order import router_steps
from infra.bootstrap.router.packages import PATH
from infra.bootstrap.step import go_through
from infra.clouds import HostKind
from infra.edge import certbot
from infra.edge.certificate import placeholder
from infra.edge.config import EdgeError, edge_config
from infra.edge.nginx import edge_unit
from infra.errors import InfraError
from infra.files import replace_file
from infra.hosts import Progress, Unit
from infra.hosts.confinement import LOW_PORTS
from infra.hosts.layout import Accounts, Layout
from infra.hosts.ssh import SshHost
from infra.paths import repository_root
from infra.provider.place import RouterPlace, UntilItAnswers
from infra.provider.router_inputs import RouterHostInputs
from infra.provider.router_units import EDGE, authority, confined_edge, edge_settings, edge_tls, redis_config
from infra.secrets import REDIS_PASSWORD, ROUTER_KEYS, TLS_CERTIFICATE, TLS_KEY
from infra.ssh.connection import Connection

NGINX = PurePosixPath("nginx")
CERTBOT = PurePosixPath("certbot")
REDIS_SERVER = PurePosixPath("redis-server")
CONFIG = "nginx.conf"
TAKEN_OVER_TRIES, POLL_S = 30, 0.3
SHOWN_LINES = 10
LOGROTATE = """\
{folder}/*.log {{
    daily
    maxsize 64M
    rotate 7
    missingok
    notifempty
    compress
    delaycompress
    su {user} {user}
    postrotate
        kill -USR1 "$(cat {edge}/nginx.pid)" 2>/dev/null || :
    endscript
}}
"""


@dataclass(frozen=True, slots=True)
class There:
    """One router's machine. `acme` is another authority than Let's Encrypt, empty for that one."""

    place: RouterPlace
    inputs: RouterHostInputs
    acme: str

    @property
    def layout(self) -> Layout:
        return self.place.layout

    @property
    def accounts(self) -> Accounts:
        accounts = self.layout.accounts
        assert accounts is not None  # noqa: S101 - every machine of its own has them
        return accounts

    @property
    def host(self) -> SshHost:
        return self.place.there()

    @property
    def sends_artifacts(self) -> bool:
        return "S3_BUCKET" not in self.inputs.settings

    def redis(self) -> PurePath:
        return REDIS_SERVER

    async def prepare(self, progress: Progress) -> None:
        """The steps, then the keys and whatever else its processes read. StepError or SshError say what to do."""
        connection = await self.place.connect(progress)
        if self.inputs.host:
            remains.forget(self.place.site.paths, self.place.machine, self.inputs.host)  # it is the stack's again
        await go_through(router_steps(self.ports), self.machine(connection, progress))
        progress("keys")
        await self._put(connection, self._files())

    @property
    def ports(self) -> tuple[int, ...]:
        """Open to everybody, beside sshd's."""
        plain = self.inputs.tls.plain_port if self.inputs.tls else None
        return (self.inputs.edge_port, *((plain,) if plain is not None else ()))

    def machine(self, connection: Connection, progress: Progress) -> RouterMachine:
        """As its steps see it."""
        return RouterMachine(
            connection=connection,
            kind=HostKind.VM,
            root=PurePosixPath(self.layout.root),
            stack_id=self.place.site.stack_id,
            progress=progress,
            layout=self.layout,
            accounts=self.accounts,
            ports=self.ports,
            version=self.inputs.code,
            wheel=build_wheel,
            constraints=repository_root() / "constraints.txt",
            redis=bool(self.inputs.redis_port),
            certbot=self.inputs.tls is not None and not self.inputs.tls.own,
        )

    def _files(self) -> Mapping[Path, tuple[bytes, str]]:
        """What its processes read, each with its owner."""
        secrets, layout, router, edge = self.place.site.secrets, self.layout, self.accounts.router, self.accounts.edge
        files = {
            layout.secrets / name: (f"{secrets.ensure(name)}\n".encode(), router)
            for name in {*ROUTER_KEYS, *self.inputs.keys} - {TLS_CERTIFICATE, TLS_KEY}
        }
        tls = edge_tls(self.inputs, layout)
        if tls and self.inputs.tls and self.inputs.tls.own:
            files[tls.certificate] = secrets.path(TLS_CERTIFICATE).read_bytes(), edge
            files[tls.key] = secrets.path(TLS_KEY).read_bytes(), edge
        if self.inputs.redis_port:
            config = redis_config(self.inputs, layout, secrets.ensure(REDIS_PASSWORD))
            files[layout.redis / "redis.conf"] = config.encode(), router
        folder = layout.edge / "log"
        rotation = LOGROTATE.format(folder=folder, user=edge, edge=layout.edge)
        files[Path("/etc/logrotate.d") / layout.run.name] = rotation.encode(), "root"
        return files

    async def _put(self, connection: Connection, files: Mapping[Path, tuple[bytes, str]]) -> None:
        """Write those that are not as they should be."""
        names = " ".join(shlex.quote(str(file)) for file in files)
        said = await connection.attempt(f"sha256sum {names} 2>/dev/null", "looking at its keys")
        there = {name: digest for digest, _, name in (line.partition("  ") for line in said.output.splitlines())}
        for file, (content, owner) in files.items():
            if there.get(str(file)) != hashlib.sha256(content).hexdigest():
                mode = 0o644 if owner == "root" else 0o600
                await connection.write(PurePosixPath(file), content, mode, f"{owner}:{owner}")

    def edge(self) -> Unit:
        """The edge as a unit of that machine."""
        made = edge_unit(edge_settings(self.inputs, self.layout, None, sends_artifacts=self.sends_artifacts), NGINX)
        return confined_edge(made, self.layout)

    async def put_edge(self, progress: Progress, until_it_answers: UntilItAnswers) -> None:
        """Have nginx read the configuration, take it over, and see that it answers; else that of before comes back.

        Raises EdgeError or what made it fail.
        """
        await self._begin_certificate()
        await self.look_ahead()
        connection, host, folder = await self.place.connect(progress), self.host, self.layout.edge
        text = edge_config(edge_settings(self.inputs, self.layout, None, sends_artifacts=self.sends_artifacts)).encode()
        config, before = folder / CONFIG, folder / f"{CONFIG}.before"
        unit = self.edge()
        changed = await connection.read(config) != text
        installed = await host.keep_previous(unit.name)
        if changed:
            progress("edge: checking its configuration")
            await self._check(connection, text)
            await connection.run(
                f"cd {folder} && {{ test ! -e {CONFIG} || cp -p {CONFIG} {before.name}; }} && "
                f"mv -f {CONFIG}.draft {CONFIG}",
                "putting the edge's configuration in place",
            )
        workers = await self._workers(connection)
        try:
            await host.ensure(unit, lambda stage: progress(f"edge: {stage}"))
            if changed and workers:
                await self._taken_over(connection, workers)
            await until_it_answers(unit.name)
        except InfraError as error:
            if not changed or installed is None:
                raise
            await connection.run(
                f"test ! -e {before} || mv -f {before} {config}", "taking the edge's configuration back"
            )
            await host.restore(unit.name, installed)
            raise EdgeError(f"{error}\nThe edge's configuration of before is in force again") from error
        await connection.run(f"rm -f {before}", "forgetting the edge's configuration of before")
        await self._forget_certificates()

    async def _workers(self, connection: Connection) -> frozenset[str]:
        """The processes that take new clients now, by pid; none if the edge does not run. One that is being replaced
        finishes what it has under a title of its own."""
        pid = self.layout.edge / "nginx.pid"
        script = (
            f"m=$(cat {pid} 2>/dev/null); for c in $(cat /proc/$m/task/$m/children 2>/dev/null); do "
            "grep -qs 'shutting down' /proc/$c/cmdline || echo $c; done"
        )
        return frozenset((await connection.run(script, "looking at the edge's processes")).split())

    async def _taken_over(self, connection: Connection, before: frozenset[str]) -> None:
        """nginx keeps the configuration that it has when it cannot have the new one (an address that is taken), and
        tells nobody but its log. Raises EdgeError unless new processes have begun and those of before take nobody."""
        for _ in range(TAKEN_OVER_TRIES):
            now = await self._workers(connection)
            if now and not now & before:
                return
            await asyncio.sleep(POLL_S)
        tail = await self.host.tail(EDGE, SHOWN_LINES)
        raise EdgeError(f"{connection.target.id}: nginx does not take the edge's configuration over:\n{tail}")

    async def _check(self, connection: Connection, text: bytes) -> None:
        """nginx itself reads it, as the user whom it will run as. Raises EdgeError with its words."""
        folder, user = self.layout.edge, self.accounts.edge
        draft = PurePosixPath(folder / f"{CONFIG}.draft")
        await connection.write(draft, text, 0o600, f"{user}:{user}")
        low = f"+{LOW_PORTS.removeprefix('CAP_').lower()}"
        run = self.layout.run / "edge"
        script = (
            f"export {PATH}; install -d -m 750 -o {user} -g {user} {run} && "
            f"setpriv --reuid {user} --regid {user} --init-groups --inh-caps {low} --ambient-caps {low} "
            f"{NGINX} -t -q -p {folder} -c {draft} 2>&1"
        )
        done = await connection.attempt(script, "having nginx read the edge's configuration")
        if done.status != 0:
            raise EdgeError(
                f"{connection.target.id}: nginx does not accept the edge's configuration, and the one of before stays "
                f"in force ({draft} is what it read):\n{done.said}"
            )

    async def _forget_certificates(self) -> None:
        """Those that the edge has shown before; it has taken over what it shows now."""
        tls = edge_tls(self.inputs, self.layout)
        if tls is None or self.inputs.tls is None or not self.inputs.tls.own:
            return
        script = f"find {tls.certificate.parent} -type f -name '*-*.*' ! -name '{tls.id}.*' -delete"
        await (await self.place.connect()).run(script, "removing certificates of before")

    def authority(self) -> certbot.Authority | None:
        return authority(self.inputs, self.layout, CERTBOT, self.acme)

    async def _begin_certificate(self) -> None:
        """What the edge shows until an authority has signed another one, and what certbot does when one has."""
        signs = self.authority()
        if signs is None:
            return
        connection, edge = await self.place.connect(), self.accounts.edge
        owner = f"{edge}:{edge}"
        if await connection.read(PurePosixPath(signs.chain)) is None:
            made = placeholder(signs.domain, datetime.now(UTC))
            await connection.write(PurePosixPath(signs.key), made.key, 0o600, owner)
            await connection.write(PurePosixPath(signs.chain), made.chain, 0o600, owner)
        hook = certbot.hook(signs, NGINX).encode()
        if await connection.read(PurePosixPath(signs.hook)) != hook:
            await connection.write(PurePosixPath(signs.hook), hook, 0o700, owner)

    def certbot(self) -> Unit | None:
        signs = self.authority()
        return confined_edge(certbot.unit(signs), self.layout, makes=self.layout.challenges) if signs else None

    async def look_ahead(self) -> None:
        """Keep here what certbot has the edge show there: our own questions trust exactly that."""
        signs = self.authority()
        if signs is None:
            return
        shown = await (await self.place.connect()).read(PurePosixPath(signs.chain))
        if shown is not None:
            kept = self.place.site.paths.router / "edge" / "tls" / "chain.pem"
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(kept, shown)
