"""From a description to the resources to declare: asks the cloud, decides the placement, draws the secrets.

The thin shell around `placement` and `program`. A preview decides and forgets; a deploy keeps what was decided in
the stack's folder, before anything is brought about by it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from infra.bootstrap.context import context_fingerprint
from infra.clouds import Cloud, Offer
from infra.clouds.hosts import offers_of
from infra.costs.charges import Charge, charges
from infra.costs.choice import Judge
from infra.costs.figures import read_figures
from infra.edge.certificate import CertificateError, covers, read_certificate
from infra.hosts.layout import TUNNELS_ROOM
from infra.identity import Identity, ensure_identity
from infra.paths import StackPaths, repository_root
from infra.planning.code import code_fingerprint
from infra.planning.placement import Placement, PlacementError, place, read_placement, write_placement
from infra.planning.program import Declared, Programs, given_secrets, resources, secret_names
from infra.provider.site import Site
from infra.secrets import DATABASE_PASSWORD, REDIS_PASSWORD, S3_CREDENTIALS, TLS_CERTIFICATE, TLS_KEY, SecretStore
from infra.stack import StackDescription, resolve
from infra.stack.description import DescriptionError

ROUTER_PARTS = ("router", "worker/contract.py", "worker/captions.py", "constraints.txt")
"""What a router runs of a checkout."""


def programs_here(root: Path | None = None) -> Programs:
    """The worker and the router of a checkout (this one), with all that they run: packages of others are pinned."""
    root = root or repository_root()
    return Programs.of_this_interpreter(
        {
            "worker": code_fingerprint(root, "worker", "constraints.txt"),
            "router": code_fingerprint(root, *ROUTER_PARTS),
        }
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a deploy would bring about, and what its machines cost. `before` is what it was decided upon."""

    declared: tuple[Declared, ...]
    placement: Placement
    before: Placement
    charges: tuple[Charge, ...] = ()

    def keep(self, paths: StackPaths) -> None:
        """Write the decision down. Raises PlacementError if another one was written since it was made."""
        if read_placement(_decision(paths)) != self.before:
            raise PlacementError(f"stack {paths.root.name} was changed by another command just now; run this again")
        write_placement(_decision(paths), self.placement)


async def plan(
    description: StackDescription,
    paths: StackPaths,
    programs: Programs | None = None,
    wanting: Placement | None = None,
) -> Plan:
    """Every resource of the stack, placed: as watch decided (`wanting`), or as is decided now.

    Raises PlacementError or CloudError if a machine goes without, PathsError if a tunnel's socket would find no room.
    """
    if description.remote and not description.router.host:
        paths.require_room(TUNNELS_ROOM)
    paths.create()
    before, identity = placed(paths)
    cloud = Site(paths, os.environ).cloud(description.cloud)
    fleet = read_figures(paths)
    alive = await alive_machines(cloud, before, identity)
    offers: Sequence[Offer] = () if wanting is not None else await cloud.offers()
    if description.hosts:
        offers = offers_of(
            {name: (host.gpu or "", host.gpus, host.gpu_memory_gib or 0.0) for name, host in description.hosts.items()}
        )
    placement = wanting if wanting is not None else place(description, offers, before, alive, Judge(fleet))
    secrets = SecretStore(paths.secrets)
    keep_given(description, secrets, os.environ)
    names = (*secret_names(placement), *given_secrets(description))
    fingerprints = {name: secrets.fingerprint(name) for name in names}
    programs = programs or programs_here()
    if description.remote:
        programs = replace(programs, image=image_tag(description))
    declared = resources(description, placement, identity, fingerprints, programs)
    return Plan(declared, placement, before, charges(description, placement, alive, fleet))


def image_tag(description: StackDescription) -> str:
    """What the worker's image is called on a machine: it changes when the image does. Raises DescriptionError."""
    image = description.image
    if image.pull:
        return image.pull
    if image.archive:
        archive = Path(resolve(image.archive, os.environ, "image.archive"))
        try:
            found = archive.stat()
        except OSError as error:
            raise DescriptionError(f"image.archive: {archive} cannot be read: {error.strerror}") from None
        mark = f"{archive.name} {found.st_size} {found.st_mtime_ns}"
    else:
        mark = f"{context_fingerprint(repository_root())} {image.base_image} {image.torch_backend}"
    return f"letterpress-worker:{hashlib.sha256(mark.encode()).hexdigest()[:16]}"


async def alive_machines(cloud: Cloud, placement: Placement, identity: Identity) -> frozenset[str]:
    """The machines, by their names in the stack, that are there as they were placed."""
    there = {machine.name for machine in await cloud.list(identity.id)}
    return frozenset(
        each.machine for each in placement.machines if identity.machine(each.machine, each.generation) in there
    )


def keep_given(description: StackDescription, secrets: SecretStore, environ: Mapping[str, str]) -> None:
    """Keep the secrets that the user brings: the environment's, or else those that it brought before.

    Raises DescriptionError if one was never brought.
    """
    router = description.router
    for name, reference in ((DATABASE_PASSWORD, router.database_password), (REDIS_PASSWORD, router.redis_password)):
        if reference:
            _keep_password(name, reference, secrets, environ)
    tls = router.edge.tls
    if tls and tls.certificate and tls.key:
        keep_certificate((tls.certificate, tls.key), tls.domain, secrets, environ)
    bucket = description.router.s3
    if bucket is None or bucket.access_key_id is None or bucket.secret_access_key is None:
        return
    try:
        key = resolve(bucket.access_key_id, environ, "router.s3.access_key_id")
        secret = resolve(bucket.secret_access_key, environ, "router.s3.secret_access_key")
    except DescriptionError:
        if secrets.path(S3_CREDENTIALS).exists():
            return
        raise
    secrets.keep(S3_CREDENTIALS, f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}")


def _keep_password(name: str, reference: str, secrets: SecretStore, environ: Mapping[str, str]) -> None:
    try:
        secrets.keep(name, resolve(reference, environ, f"router.{name.replace('-', '_')}"))
    except DescriptionError:
        if not secrets.path(name).exists():
            raise


def keep_certificate(
    files: tuple[str, str], domain: str | None, secrets: SecretStore, environ: Mapping[str, str]
) -> None:
    """Keep the edge's certificate as its files have it now: they are read anew with each deploy.

    Raises CertificateError if nginx could not use it, or nobody would take it for the described name.
    """
    chain = Path(resolve(files[0], environ, "router.edge.tls.certificate"))
    key = Path(resolve(files[1], environ, "router.edge.tls.key"))
    if not chain.exists() and secrets.path(TLS_CERTIFICATE).exists():
        return  # taken over with the bundle, by somebody who has no such files
    found = read_certificate(chain, key, datetime.now(UTC))
    if domain and not covers(found, domain):
        raise CertificateError(
            f"router.edge.tls.certificate: {chain} is for {', '.join(found.names) or 'no name'}, not for {domain}"
        )
    secrets.keep(TLS_CERTIFICATE, found.chain.decode().strip())
    secrets.keep(TLS_KEY, found.key.decode().strip())


def placed(paths: StackPaths) -> tuple[Placement, Identity]:
    """What was decided last, and the id that the machines are named with (drawn now if there is none)."""
    return read_placement(_decision(paths)), ensure_identity(paths.root / "stack-id")


def _decision(paths: StackPaths) -> Path:
    return paths.root / "placement.json"
