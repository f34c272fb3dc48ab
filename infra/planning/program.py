"""Description and placement in, resources out: the whole deployment as plain values.

`resources` is pure. What it says of a resource it says from the description alone, never from another
resource's outputs: a preview is therefore exact, and every id is known before anything exists. `declare`
hands the values to Pulumi; only `infra.engine` runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.clouds import Access, HostKind
from infra.identity import Identity
from infra.planning.placement import Placed, Placement, devices, machine_names, names, wants_gpu
from infra.provider.elsewhere import Elsewhere, ImageInputs, MachineFacts
from infra.provider.endpoint import EndpointInputs
from infra.provider.machine import MachineInputs
from infra.provider.registration import RegistrationInputs
from infra.provider.resource import Inputs, Kind
from infra.provider.router_inputs import RouterHostInputs, TlsInputs, reachable_url
from infra.provider.site import TUNNELLED
from infra.provider.worker_host import WorkerHostInputs, WorkerInputs, worker_url
from infra.secrets import (
    DATABASE_PASSWORD,
    REDIS_PASSWORD,
    ROUTER_KEYS,
    S3_CREDENTIALS,
    TLS_CERTIFICATE,
    TLS_KEY,
    worker_token,
)
from infra.stack import TINY, CloudName, OwnHost, Pool, Serverless, StackDescription, first_port_setting
from infra.stack.router import HERE, Bucket, Tls

if TYPE_CHECKING:
    import pulumi

ROUTER_HOST = "router"

READY_WITHIN_TINY_S = 300.0
"""Several workers import torch at once on two cores; that takes a minute."""
READY_WITHIN_S = 3600.0
"""Real weights are 16 GB and more to download, the first time."""


@dataclass(frozen=True, slots=True)
class Program:
    """How one of our processes is started, and the digest of its code."""

    argv: tuple[str, ...]
    code: str


@dataclass(frozen=True, slots=True)
class Programs:
    worker: Program
    router: Program
    image: str = ""
    """What the worker's image is called on machines that are reached through SSH."""

    @classmethod
    def of_this_interpreter(cls, code: Mapping[str, str]) -> Programs:
        """The packages `worker` and `router` run by this Python; `code` holds their digests by name."""
        worker, router = ((sys.executable, "-m", name) for name in ("worker", "router"))
        return cls(Program(worker, code["worker"]), Program(router, code["router"]))


@dataclass(frozen=True, slots=True)
class Declared:
    """One resource. `depends_on` names others that must be there before it, and go after it."""

    kind: Kind
    name: str
    inputs: Inputs
    depends_on: tuple[str, ...] = ()


def worker_names(placed: Placed) -> tuple[str, ...]:
    """The workers of a machine: one is called like the machine, several are numbered by their GPU."""
    count = len(devices(placed.offer))
    return (placed.machine,) if count == 1 else tuple(f"{placed.machine}-gpu{index}" for index in range(count))


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one worker is: its name, what it computes on, and its loopback port."""

    worker: str
    device: str
    port: int


def seats(name: str, pool: Pool, placement: Placement) -> Iterator[tuple[Placed, tuple[Seat, ...]]]:
    """Each placed machine of a pool with its workers; ports count up from the pool's first, across machines.

    Where machines come and go, each has ports of its own by its number: nobody else's change with it.
    """
    port = pool.first_port
    for index, machine in enumerate(machine_names(name, pool.most)):
        placed = placement.of(machine)
        if placed is None:
            continue
        if pool.scale is not None:
            port = pool.first_port + index * pool.gpus_per_machine
        workers = enumerate(zip(worker_names(placed), devices(placed.offer), strict=True), start=port)
        seated = tuple(Seat(worker, device, at) for at, (worker, device) in workers)
        port += len(seated)
        yield placed, seated


def given_secrets(description: StackDescription) -> tuple[str, ...]:
    """Secrets that the user brings, by the environment or as files, and the password of a Redis of our own."""
    router = description.router
    bucket, tls = router.s3, router.edge.tls
    return (
        *((DATABASE_PASSWORD,) if router.database_password else ()),
        *((REDIS_PASSWORD,) if router.redis_password or router.redis == HERE else ()),
        *((S3_CREDENTIALS,) if bucket and bucket.access_key_id else ()),
        *((TLS_CERTIFICATE, TLS_KEY) if tls and tls.certificate else ()),
    )


def secret_names(placement: Placement) -> tuple[str, ...]:
    """Every secret of our own drawing whose fingerprint `resources` wants."""
    tokens = (worker_token(name) for placed in placement.machines for name in worker_names(placed))
    return (*ROUTER_KEYS, *tokens)


def resources(
    description: StackDescription,
    placement: Placement,
    identity: Identity,
    fingerprints: Mapping[str, str],
    programs: Programs,
) -> tuple[Declared, ...]:
    """Every resource of the stack, each after those that it depends on. `fingerprints` are by secret's name."""
    router = _router_host(description, fingerprints, programs.router)
    machines = (
        resource
        for name, pool in description.pools.items()
        for resource in _pool(name, pool, description, placement, identity, fingerprints, programs)
    )
    endpoints = (_endpoint(name, each, description, identity) for name, each in description.serverless.items())
    return (router, *machines, *endpoints)


def declare(declared: Sequence[Declared]) -> None:
    """Register the resources with the Pulumi engine; runs inside a Pulumi program."""
    import pulumi  # noqa: PLC0415 - half a second that only those pay who run the engine

    made: dict[str, pulumi.Resource] = {}
    for resource in declared:
        options = pulumi.ResourceOptions(depends_on=[made[name] for name in resource.depends_on])
        properties = resource.inputs.model_dump(mode="json")
        made[resource.name] = pulumi.CustomResource(resource.kind.value, resource.name, properties, options)


def _router_host(description: StackDescription, fingerprints: Mapping[str, str], program: Program) -> Declared:
    router = description.router
    edge, admin = router.edge, router.admin
    redis_here = router.redis == HERE
    inputs = RouterHostInputs(
        host=router_access(description),
        program=() if router.host else program.argv,
        code=program.code,
        edge_host=edge.host,
        edge_port=edge.port,
        tls=_tls(edge.tls),
        admin_host=admin.host,
        admin_port=admin.port,
        keys={name: fingerprints[name] for name in (*ROUTER_KEYS, *given_secrets(description))},
        settings=_bucket_settings(description.router.s3) | _webhook_settings(description.router.webhook_allow),
        tunnels=description.remote,
        database=database_url(router.database),
        redis=router.redis or "" if not redis_here else "",
        redis_port=router.redis_port if redis_here else 0,
        processes=router.processes,
        consumers=router.driving,
    )
    return Declared(Kind.ROUTER_HOST, ROUTER_HOST, inputs)


def router_access(description: StackDescription) -> Access | None:
    """How the router's host is reached; None for this computer."""
    host = description.router.host
    return Access(host.address, host.port, host.user, host.key or "", host.sudo_password or "") if host else None


def database_url(described: str | None) -> str:
    """As the router has it: by the driver that it brings."""
    return f"postgresql+asyncpg://{described.partition('://')[2]}" if described else ""


def _tls(described: Tls | None) -> TlsInputs | None:
    if described is None:
        return None
    return TlsInputs(
        domain=described.domain or "",
        email=described.email or "",
        own=described.certificate is not None,
        plain_port=described.plain,
    )


def _webhook_settings(allow: Sequence[str]) -> dict[str, str]:
    return {"WEBHOOK_ALLOW": ",".join(allow)} if allow else {}


def _bucket_settings(bucket: Bucket | None) -> dict[str, str]:
    if bucket is None:
        return {}
    named = {
        "S3_BUCKET": bucket.bucket,
        "S3_PREFIX": bucket.prefix,
        "S3_REGION": bucket.region,
        "S3_ENDPOINT": bucket.endpoint,
        "S3_PUBLIC_ENDPOINT": bucket.public_endpoint,
    }
    return {name: value for name, value in named.items() if value is not None}


def _pool(
    name: str,
    pool: Pool,
    description: StackDescription,
    placement: Placement,
    identity: Identity,
    fingerprints: Mapping[str, str],
    programs: Programs,
) -> Iterator[Declared]:
    for machine in names(name, pool, placement):
        if placement.of(machine) is None:
            raise ValueError(f"{machine} has no place; place() gives every described machine one")
    setting = first_port_setting(name)
    for placed, seated in seats(name, pool, placement):
        workers = tuple(
            WorkerInputs(
                name=seat.worker,
                device="cpu" if description.remote and not wants_gpu(description, pool) else seat.device,
                port=seat.port,
                token=fingerprints[worker_token(seat.worker)],
                setting=setting,
            )
            for seat in seated
        )
        yield from _machine(placed, pool, identity, description, programs, workers)
        for worker in workers:
            yield _registration(worker, placed.machine, name, description)


def _machine(
    placed: Placed,
    pool: Pool,
    identity: Identity,
    description: StackDescription,
    programs: Programs,
    workers: tuple[WorkerInputs, ...],
) -> Iterator[Declared]:
    rented_name = identity.machine(placed.machine, placed.generation)
    host = description.hosts.get(placed.offer.region) if description.hosts else None
    elsewhere = (
        _elsewhere(host or _rented(placed, description), description, programs.image) if description.remote else None
    )
    machine = MachineInputs(
        name=rented_name,
        cloud=description.cloud,
        offer=placed.offer,
        image=description.pod_image or "" if description.cloud == CloudName.RUNPOD else "",
        access=access_of(host) if host else None,
    )
    yield Declared(Kind.MACHINE, placed.machine, machine)
    worker_host = WorkerHostInputs(
        machine=rented_name,
        cloud=description.cloud,
        program=() if elsewhere else programs.worker.argv,
        code="" if elsewhere else programs.worker.code,
        model=description.model,
        engine=description.engine,
        tier=pool.tier,
        warm_sizes=pool.warm_sizes,
        metadata=description.metadata,
        blocked_share=description.blocked_share,
        cache=description.cache,
        accept_license=description.accept_license,
        workers=workers,
        ready_within_s=READY_WITHIN_TINY_S if description.model == TINY else READY_WITHIN_S,
        elsewhere=elsewhere,
    )
    # A router elsewhere has to be there before its tunnel service can be told of a machine.
    before = (placed.machine, ROUTER_HOST) if description.router.host else (placed.machine,)
    yield Declared(Kind.WORKER_HOST, _worker_host_name(placed.machine), worker_host, before)


def _endpoint(name: str, described: Serverless, description: StackDescription, identity: Identity) -> Declared:
    settings = {"MODEL": description.model, "TIER": described.tier.value}
    if description.accept_license:
        settings["ACCEPT_LICENSE"] = "true"
    inputs = EndpointInputs(
        name=identity.machine(f"endpoint-{name}", 1),
        image=described.image,
        gpu_pools=described.gpu_pools,
        least=described.least,
        most=described.most,
        idle_s=described.idle_s,
        settings={f"LETTERPRESS_WORKER_{key}": value for key, value in settings.items()},
        hub_secret=described.hub_secret,
        volume_gb=described.volume_gb,
        data_center=described.data_center,
    )
    return Declared(Kind.ENDPOINT, f"{name}-endpoint", inputs)


def _rented(placed: Placed, description: StackDescription) -> OwnHost:
    """A rented machine as if it were described, but for its address, which nobody knows yet."""
    gpus = placed.offer.gpus if description.model != TINY else 0
    if description.cloud == CloudName.RUNPOD:
        return OwnHost.model_construct(address="", gpus=gpus, kind=HostKind.CONTAINER)
    return OwnHost.model_construct(address="", gpus=gpus)


def access_of(host: OwnHost) -> Access:
    return Access(host.address, host.port, host.user, host.key or "", host.sudo_password or "", host.kind)


def _elsewhere(host: OwnHost, description: StackDescription, image: str) -> Elsewhere:
    admin, wanted = description.router.admin, description.image
    build = {"BASE_IMAGE": wanted.base_image, "TORCH_BACKEND": wanted.torch_backend}
    return Elsewhere(
        access=access_of(host),
        image=ImageInputs(
            tag=image,
            pull=wanted.pull or "",
            username=wanted.username or "",
            password=wanted.password or "",
            archive=wanted.archive or "",
            build_args={name: value for name, value in build.items() if value},
        ),
        facts=MachineFacts(
            gpus=host.gpus,
            gpu=host.gpu or "",
            gpu_memory_gib=host.gpu_memory_gib or 0.0,
            disk_gib=host.disk_gib,
            download_mbit_s=host.download_mbit_s or 0.0,
            worker_memory_gib=host.worker_memory_gib,
        ),
        admin_url=reachable_url(admin.host, admin.port),
        router=router_access(description),
    )


def _registration(worker: WorkerInputs, machine: str, pool: str, description: StackDescription) -> Declared:
    admin = description.router.admin
    inputs = RegistrationInputs(
        worker=worker.name,
        pool=pool,
        url=f"{TUNNELLED}{worker.name}" if description.remote else worker_url(worker.port),
        token=worker.token,
        admin_url=reachable_url(admin.host, admin.port),
        router=router_access(description),
    )
    name = f"{worker.name}-registration"
    return Declared(Kind.REGISTRATION, name, inputs, (_worker_host_name(machine), ROUTER_HOST))


def _worker_host_name(machine: str) -> str:
    return f"{machine}-workers"
