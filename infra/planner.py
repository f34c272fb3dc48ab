"""From a description to the resources to declare: asks the cloud, decides the placement, draws the secrets.

The thin shell around `infra.placement` and `infra.program`. It writes what it decided into the stack's
folder before anything is previewed, and makes nothing else.
"""

from __future__ import annotations

from pathlib import Path

from infra.code import code_fingerprint
from infra.identity import Identity, ensure_identity
from infra.paths import StackPaths
from infra.placement import Placement, place, read_placement, write_placement
from infra.program import Declared, Programs, resources, secret_names
from infra.provider.site import Site
from infra.secrets import SecretStore
from infra.stack import StackDescription


def programs_here() -> Programs:
    """This checkout's worker and router. The contract that a worker speaks is part of its own package."""
    return Programs.of_this_interpreter({"worker": code_fingerprint("worker"), "router": code_fingerprint("router")})


async def plan(
    description: StackDescription, paths: StackPaths, programs: Programs | None = None
) -> tuple[Declared, ...]:
    """Every resource of the stack, placed. Raises PlacementError or CloudError if a machine goes without."""
    paths.create()
    before, identity = placed(paths)
    cloud = Site(paths, {}).cloud(description.cloud)
    placement = place(description, await cloud.offers(), before)
    write_placement(_decision(paths), placement)
    secrets = SecretStore(paths.secrets)
    fingerprints = {name: secrets.fingerprint(name) for name in secret_names(placement)}
    return resources(description, placement, identity, fingerprints, programs or programs_here())


def placed(paths: StackPaths) -> tuple[Placement, Identity]:
    """What was decided last, and the id that the machines are named with (drawn now if there is none)."""
    return read_placement(_decision(paths)), ensure_identity(paths.root / "stack-id")


def _decision(paths: StackPaths) -> Path:
    return paths.root / "placement.json"
