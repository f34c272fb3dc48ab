"""What runs in a stack's name although no state knows of it: found where such things are kept, and ended.

A state can get lost (a removed folder, another backend); machines and units carry the stack's id, or lie in
its own folder, and are its own by that alone. Only for a stack whose state is empty, under its lock.
"""

from __future__ import annotations

import os

from infra.clouds import Machine
from infra.errors import InfraError
from infra.identity import ensure_identity
from infra.paths import StackPaths
from infra.provider.site import Site
from infra.stack import CloudName


class StraysError(InfraError):
    """Something is rented in the stack's name that no state knows of."""


async def rented(paths: StackPaths) -> tuple[Machine, ...]:
    """Every machine that is alive in the stack's name, on every cloud that the environment has a key for."""
    site, identity = Site(paths, os.environ), ensure_identity(paths.root / "stack-id")
    found = [await site.cloud(name).list(identity.id) for name in site.accounts()]
    return tuple(machine for each in found for machine in each)


async def strays(paths: StackPaths, known: frozenset[str]) -> tuple[tuple[CloudName, Machine], ...]:
    """Those of them that the state, which knows the names `known`, has not."""
    site, identity = Site(paths, os.environ), ensure_identity(paths.root / "stack-id")
    found = [(name, await site.cloud(name).list(identity.id)) for name in site.accounts()]
    return tuple((name, machine) for name, each in found for machine in each if machine.name not in known)


async def end_strays(paths: StackPaths) -> tuple[str, ...]:
    """End every unit of the router's host and every machine that is named with the stack's id; their names.

    Raises HostError or CloudError for what cannot be ended; to try again is safe.
    """
    site = Site(paths, os.environ)
    ended = []
    router = site.router_host()
    for unit in await router.units():
        await router.remove(unit, lambda _: None)
        ended.append(unit)
    identity = ensure_identity(paths.root / "stack-id")
    for name in site.accounts():
        cloud = site.cloud(name)
        for machine in await cloud.list(identity.id):
            await cloud.delete(machine.id)
            ended.append(machine.name)
    return tuple(ended)
