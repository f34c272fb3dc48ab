"""What runs in a stack's name although no state knows of it: found where such things are kept, and ended.

A state can get lost (a removed folder, another backend); machines, endpoints and units carry the stack's id, or lie
in its own folder, and are its own by that alone. Only for a stack whose state is empty, under its lock.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from infra.clouds import Access
from infra.clouds.hosts import HostsCloud
from infra.deployment import Deployment
from infra.errors import InfraError
from infra.hosts.local import LocalHost
from infra.identity import ensure_identity
from infra.paths import StackPaths
from infra.planning.planner import placed
from infra.planning.program import router_access
from infra.provider.elsewhere import leave_machine
from infra.provider.place import RouterPlace
from infra.provider.router_leave import take_leave
from infra.provider.site import Site
from infra.stack import CloudName
from infra.stack.description import DescriptionError


class StraysError(InfraError):
    """Something is, or may be, rented in the stack's name that no state knows of."""


@dataclass(frozen=True, slots=True)
class Stray:
    """Something that a cloud has in the stack's name. `machine_id` is the cloud's; empty for a serverless endpoint,
    which is known by its name, with its template and the volume that keeps its weights.

    `price` is US dollars an hour, `since` when it began to be paid for, where the cloud says so.
    """

    name: str
    cloud: CloudName
    machine_id: str = ""
    price: float = 0.0
    since: datetime | None = None


async def rented(paths: StackPaths) -> tuple[Stray, ...]:
    """Everything in the stack's name, on every cloud that the environment has a key for.

    Raises CloudError if one does not answer, StraysError if there is no key for one that the stack is known to rent
    from: what it does not say is not known to be gone.
    """
    require_keys(paths)
    site = Site(paths, os.environ)
    return tuple([stray for name in site.accounts() for stray in await _in_its_name(site, name)])


async def strays(paths: StackPaths, known: frozenset[str]) -> tuple[Stray, ...]:
    """Those of them that the state, which knows the names `known`, has not."""
    return tuple(stray for stray in await rented(paths) if stray.name not in known)


async def give_back(site: Site, stray: Stray) -> None:
    """Raises CloudError if that cannot be, TooEarlyError if it cannot be yet.

    A machine that the user had already stays, and the stack leaves it, if it answers (`infra.remains`).
    """
    if stray.cloud is CloudName.HOSTS and (access := HostsCloud(site.paths).access(stray.name)):
        await leave_machine(site, stray.name, access, lambda _: None)
    if stray.machine_id:
        await site.cloud(stray.cloud).delete(stray.machine_id)
    else:
        await site.serverless().delete(stray.name)


async def end_strays(paths: StackPaths) -> tuple[str, ...]:
    """End every unit of the router's host and everything that is named with the stack's id; their names.

    Raises StraysError for what could not be ended, after all that could be; to try again is safe.
    """
    site = Site(paths, os.environ)
    ended: list[str] = []
    failures: list[str] = []
    router = LocalHost("router", paths.router, paths.logs)
    for unit in await router.units():
        try:
            await router.remove(unit, lambda _: None)
            ended.append(unit)
        except InfraError as error:
            failures.append(str(error))
    if access := _routers_machine(paths):
        await take_leave(RouterPlace(site, access), access, lambda _: None)
        ended.append(f"the router on {access.address}")
    for name in site.accounts():
        try:
            found = await _in_its_name(site, name)
        except InfraError as error:
            failures.append(str(error))
            continue
        for stray in found:
            try:
                await give_back(site, stray)
                ended.append(stray.name)
            except InfraError as error:
                failures.append(str(error))
    try:
        require_keys(paths)
    except StraysError as error:
        failures.append(str(error))
    if failures:
        done = f"ended {', '.join(ended)}; " if ended else ""
        raise StraysError(f"stack {paths.root.name}: {done}" + "\n".join(failures))
    return tuple(ended)


def _routers_machine(paths: StackPaths) -> Access | None:
    """By what was deployed last; what cannot be read tells nothing."""
    try:
        deployment = Deployment.kept(paths)
    except DescriptionError:
        return None
    return router_access(deployment.description) if deployment else None


def require_keys(paths: StackPaths) -> None:
    """Raise StraysError if the environment lacks the key of a cloud that the stack is known to rent from."""
    unasked = Site(paths, os.environ).unasked()
    if missing := [(name, unasked[name]) for name in sorted(_known_clouds(paths)) if name in unasked]:
        said = "; ".join(f"{key} is not set, so {name} cannot be asked what runs in its name" for name, key in missing)
        raise StraysError(f"{said}. Give it in the environment and run this again")


def unasked(paths: StackPaths) -> Sequence[str]:
    """A line for a person about the clouds that were not asked, if there are any."""
    clouds = Site(paths, os.environ).unasked()
    named = ", ".join(f"{name} ({key} is not set)" for name, key in clouds.items())
    return [f"Not asked: {named}."] if named else []


async def _in_its_name(site: Site, name: CloudName) -> tuple[Stray, ...]:
    identity = ensure_identity(site.paths.root / "stack-id")
    found = [
        Stray(machine.name, name, machine.id, machine.price, machine.rented_at)
        for machine in await site.cloud(name).list(identity.id)
    ]
    if name is CloudName.RUNPOD:
        found += [Stray(each, name) for each in sorted(set(await site.serverless().left(identity.id)))]
    return tuple(found)


def _known_clouds(paths: StackPaths) -> frozenset[CloudName]:
    """By what was deployed last and where its machines were placed; what cannot be read tells nothing."""
    placement, _ = placed(paths)
    clouds = {CloudName(each.offer.cloud) for each in placement.machines}
    try:
        deployment = Deployment.kept(paths)
    except DescriptionError:
        return frozenset(clouds)
    if deployment:
        clouds.add(deployment.description.cloud)
        clouds |= {CloudName.RUNPOD} if deployment.description.serverless else set()
    return frozenset(clouds)
