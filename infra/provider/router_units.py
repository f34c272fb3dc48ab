"""The router's processes as units of its host: routers, consumers, a Redis of their own, edge and certbot. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from infra.edge import certbot
from infra.edge.config import ArtifactsFolder, EdgeSettings, EdgeUser, Tls
from infra.hosts import Listen, Service, Unit
from infra.hosts.confinement import Confinement
from infra.hosts.layout import Layout
from infra.provider.router_inputs import RouterHostInputs, public_url
from infra.secrets import (
    ADMIN_KEY,
    API_KEY,
    DATABASE_PASSWORD,
    REDIS_PASSWORD,
    S3_CREDENTIALS,
    SIGNING_KEY,
    TLS_CERTIFICATE,
    TLS_KEY,
)

ROUTER = "router"
CONSUMER = "consumer"
EDGE = "edge"
REDIS = "redis"
SOCKET = "router.sock"
STOP_GRACE_S = 15.0
DRAIN_S = 120
"""Beside others, a router that is told to stop answers those who wait for so long: an image and more."""
CONSUMER_STOP_S = 125.0
"""A consumer finishes what runs within 120 s."""


def numbered(name: str, count: int) -> tuple[str, ...]:
    """`router`, `router-2`, `router-3`: the first one is called as if it were the only one."""
    return tuple(name if number == 1 else f"{name}-{number}" for number in range(1, count + 1))


def router_names(inputs: RouterHostInputs) -> tuple[str, ...]:
    return numbered(ROUTER, inputs.processes)


def consumer_names(inputs: RouterHostInputs) -> tuple[str, ...]:
    return numbered(CONSUMER, inputs.consumers)


def socket_of(layout: Layout, name: str) -> Path:
    return layout.sockets / (SOCKET if name == ROUTER else f"{name}.sock")


def python(inputs: RouterHostInputs, layout: Layout) -> str:
    """The interpreter that has this version installed, on a machine of its own."""
    return str(layout.code(inputs.code) / "bin" / "python")


def router_units(inputs: RouterHostInputs, layout: Layout, *, sends_artifacts: bool) -> tuple[Unit, ...]:
    """In the order in which they are replaced, one after the other."""
    return tuple(
        _router(inputs, layout, name, number, sends_artifacts=sends_artifacts)
        for number, name in enumerate(router_names(inputs))
    )


def _router(inputs: RouterHostInputs, layout: Layout, name: str, number: int, *, sends_artifacts: bool) -> Unit:
    port = inputs.admin_port + number
    settings = {
        "SOCKET": str(socket_of(layout, name)),
        "ADMIN_HOST": inputs.admin_host,
        "ADMIN_PORT": str(port),
        "API_KEY_FILE": str(layout.secrets / API_KEY),
        "ADMIN_KEY_FILE": str(layout.secrets / ADMIN_KEY),
        "SIGNING_KEY_FILE": str(layout.secrets / SIGNING_KEY),
        "PUBLIC_URL": public_url(inputs),
        **_shared(inputs, layout),
    }
    if sends_artifacts:
        settings["EDGE_SENDS_ARTIFACTS"] = "true"
    alone = inputs.processes == 1
    if not alone:
        settings["DRAIN_S"] = str(DRAIN_S)
    return Unit(
        name=name,
        argv=_program(inputs, layout, "router"),
        env=_environment(settings),
        listens=(Listen(inputs.admin_host, port, "router.admin.port"),),
        stop_grace=STOP_GRACE_S if alone else DRAIN_S + STOP_GRACE_S,
        config=_version(inputs),
        service=_service(layout, "router", (layout.data,), after=_before(inputs)),
    )


def consumer_units(inputs: RouterHostInputs, layout: Layout) -> tuple[Unit, ...]:
    return tuple(
        Unit(
            name=name,
            argv=_program(inputs, layout, "router.consume"),
            env=_environment({**_shared(inputs, layout), "CONSUMER_NAME": name}),
            stop_grace=CONSUMER_STOP_S,
            config=_version(inputs),
            service=_service(layout, "consumer", (layout.data,), after=_before(inputs)),
        )
        for name in consumer_names(inputs)
    )


def redis_unit(inputs: RouterHostInputs, layout: Layout, program: PurePath) -> Unit | None:
    if not inputs.redis_port:
        return None
    return Unit(
        name=REDIS,
        argv=(str(program), str(layout.redis / "redis.conf")),
        listens=(Listen("127.0.0.1", inputs.redis_port, "router.redis_port"),),
        config=inputs.keys[REDIS_PASSWORD],
        service=_service(layout, "redis", (layout.redis,)),
    )


def redis_config(inputs: RouterHostInputs, layout: Layout, password: str) -> str:
    """Nothing that it holds is needed after a restart, and nobody else on the machine is let in."""
    return (
        f"bind 127.0.0.1\nport {inputs.redis_port}\nprotected-mode yes\nrequirepass {password}\n"
        f'dir {layout.redis}\nsave ""\nappendonly no\ndaemonize no\n'
    )


def tunnel_unit(layout: Layout, program: Sequence[str]) -> Unit:
    """It runs on when a release replaces everything else: `program` is called the same in each."""
    settings = {
        "MACHINES_FILE": str(layout.tunnels / "machines.json"),
        "STATUS_FILE": str(layout.tunnels / "status.json"),
        "RUN_DIR": str(layout.tunnel_run),
        "KEY_FILE": str(layout.tunnels / "key"),
    }
    return Unit(
        name="tunnels",
        argv=(*program, "-m", "router.tunnels"),
        env={f"LETTERPRESS_TUNNELS_{name}": value for name, value in settings.items()},
        service=_service(layout, "tunnels", (layout.tunnels,)),
    )


def edge_settings(
    inputs: RouterHostInputs, layout: Layout, user: EdgeUser | None, *, sends_artifacts: bool
) -> EdgeSettings:
    first, *more = router_names(inputs)
    return EdgeSettings(
        host=inputs.edge_host,
        port=inputs.edge_port,
        socket=socket_of(layout, first),
        folder=layout.edge,
        run=layout.run,
        logs=layout.logs if layout.accounts is None else layout.edge / "log",
        artifacts=artifacts_folder(layout) if sends_artifacts else None,
        user=user,
        tls=edge_tls(inputs, layout),
        more_sockets=tuple(socket_of(layout, name) for name in more),
    )


def artifacts_folder(layout: Layout) -> ArtifactsFolder:
    return ArtifactsFolder(layout.artifacts, layout.stack)


def edge_tls(inputs: RouterHostInputs, layout: Layout) -> Tls | None:
    if inputs.tls is None:
        return None
    folder = layout.edge / "tls"
    if not inputs.tls.own:
        return Tls(folder / "chain.pem", folder / "key.pem", certbot.NAME, inputs.tls.plain_port, layout.challenges)
    # By content: what is in force keeps its files until its successor has been accepted.
    mark = f"{inputs.keys[TLS_CERTIFICATE]}-{inputs.keys[TLS_KEY]}"
    return Tls(folder / f"{mark}.pem", folder / f"{mark}.key", mark, inputs.tls.plain_port)


def authority(inputs: RouterHostInputs, layout: Layout, program: PurePath, server: str) -> certbot.Authority | None:
    """Who signs the edge's certificate; None where the user has one, or wants none."""
    if inputs.tls is None or inputs.tls.own:
        return None
    return certbot.Authority(
        program=program,
        domain=inputs.tls.domain,
        email=inputs.tls.email,
        folder=layout.edge,
        challenges=layout.challenges,
        server=server,
    )


def confined_edge(unit: Unit, layout: Layout, makes: PurePath | None = None) -> Unit:
    """The edge, or certbot, which has nginx try what it got: as the edge's own user. `makes` is a folder that has to be
    there first, and goes with a restart of the machine."""
    if layout.accounts is None:
        return unit
    accounts = layout.accounts
    confined = Confinement(
        accounts.edge, f"{layout.run.name}/edge", (layout.edge,), groups=(accounts.router,), low_ports=True
    )
    before = (("mkdir", "-p", str(makes)),) if makes else ()
    return replace(unit, service=Service(before=before, lines=confined.lines))


def _service(layout: Layout, runtime: str, writes: Sequence[PurePath], after: tuple[str, ...] = ()) -> Service:
    if layout.accounts is None:
        return Service()
    confined = Confinement(layout.accounts.router, f"{layout.run.name}/{runtime}", writes)
    return Service(lines=confined.lines, after=after)


def _before(inputs: RouterHostInputs) -> tuple[str, ...]:
    return (REDIS,) if inputs.redis_port else ()


def _program(inputs: RouterHostInputs, layout: Layout, module: str) -> tuple[str, ...]:
    if layout.accounts is not None:
        return (python(inputs, layout), "-m", module)
    if module == "router":
        return inputs.program
    *interpreter, _ = inputs.program
    return (*interpreter, module)


def _shared(inputs: RouterHostInputs, layout: Layout) -> dict[str, str]:
    """What routers and consumers are told alike."""
    told = {"DATA_DIR": str(layout.data), **inputs.settings}
    if inputs.tunnels:
        told["TUNNELS_STATUS_FILE"] = str(layout.tunnels / "status.json")
    if inputs.database:
        told["DATABASE_URL"] = inputs.database
    if inputs.redis_port:
        told["REDIS_URL"] = f"redis://127.0.0.1:{inputs.redis_port}/0"
    elif inputs.redis:
        told["REDIS_URL"] = inputs.redis
    files = {
        "S3_CREDENTIALS_FILE": S3_CREDENTIALS,
        "DATABASE_PASSWORD_FILE": DATABASE_PASSWORD,
        "REDIS_PASSWORD_FILE": REDIS_PASSWORD,
    }
    return told | {name: str(layout.secrets / secret) for name, secret in files.items() if secret in inputs.keys}


def _environment(settings: dict[str, str]) -> dict[str, str]:
    return {f"LETTERPRESS_ROUTER_{name}": value for name, value in settings.items()}


def _version(inputs: RouterHostInputs) -> str:
    """New keys and new code take effect in a new process; a new certificate is the edge's business alone."""
    known = sorted(inputs.keys.keys() - {TLS_CERTIFICATE, TLS_KEY})
    keys = " ".join(f"{name}={inputs.keys[name]}" for name in known)
    return hashlib.sha256(f"{keys} {inputs.code}".encode()).hexdigest()[:16]


def all_names(inputs: RouterHostInputs) -> Iterator[str]:
    """Of its units, the front door first: in the order in which they are ended."""
    yield certbot.NAME
    yield EDGE
    yield from router_names(inputs)
    yield from consumer_names(inputs)
    if inputs.redis_port:
        yield REDIS
