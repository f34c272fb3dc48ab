"""Asking a deployed stack how it is: its hosts about their units, its router about workers and jobs.

What comes of the answers is pure (`infra.view.status`). Whatever does not answer is left out, not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from infra.clouds import Access, Machine
from infra.deployment import Deployment
from infra.hosts import Host, UnitStatus
from infra.planning.planner import placed
from infra.planning.program import access_of, seats
from infra.provider.elsewhere import host_of
from infra.provider.router_inputs import reachable_url
from infra.provider.router_units import CONSUMER, EDGE, REDIS, ROUTER, numbered
from infra.provider.site import Site
from infra.provider.worker_host import worker_url
from infra.ssh.target import Patience
from infra.stack.router import HERE
from infra.view.status import NOTHING, Described, RouterSays, Row, rows
from router.client import RouterClientError

ROUTER_ANSWERS_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A unit and the host that keeps it."""

    host: Host
    described: Described


async def status(deployment: Deployment) -> tuple[Row, ...]:
    """One row for each process that the stack should have."""
    kept = await units(deployment)
    seen, router = await asyncio.gather(
        asyncio.gather(*(one.host.observe(one.described.unit) for one in kept)), _ask_router(deployment)
    )
    statuses: dict[str, UnitStatus] = {one.described.unit: found for one, found in zip(kept, seen, strict=True)}
    return rows([one.described for one in kept], statuses, router)


async def units(deployment: Deployment) -> tuple[Kept, ...]:
    """Every described unit, the front door first. A machine that is gone has none."""
    place = deployment.place()
    site = place.site
    front = place.host()
    kept = [Kept(front, one) for one in _at_the_front(deployment)]
    cloud = site.cloud(deployment.description.cloud)
    for rented_name, host_name, workers in _workers(deployment):
        machine = await cloud.find(rented_name)
        if machine:
            own = deployment.description.hosts.get(host_name)
            host: Host = (
                host_of(site, rented_name, access_of(own), lambda _: None, Patience(reach_s=0.0))
                if own
                else _rented_host(site, deployment, machine)
            )
            kept += [Kept(host, worker) for worker in workers]
    return tuple(kept)


def _at_the_front(deployment: Deployment) -> Iterator[Described]:
    """The units of the router's host."""
    endpoint, router = deployment.endpoint, deployment.description.router
    yield Described(EDGE, EDGE, endpoint.url)
    for number, name in enumerate(numbered(ROUTER, router.processes)):
        url = endpoint.admin_url if number == 0 else reachable_url(router.admin.host, router.admin.port + number)
        yield Described(name, name, url)
    for name in numbered(CONSUMER, router.driving):
        yield Described(name, name, NOTHING)
    if router.redis == HERE:
        yield Described(REDIS, REDIS, f"redis://127.0.0.1:{router.redis_port}")


def _rented_host(site: Site, deployment: Deployment, machine: Machine) -> Host:
    """Of a machine that the user has not described: this computer's, or where its cloud says that it is."""
    cloud = deployment.description.cloud
    if not deployment.description.remote:
        return site.machine_host(cloud, machine)
    kind = site.cloud(cloud).ability.host
    access = Access(machine.address, machine.port, machine.user or "root", kind=kind)
    return host_of(site, machine.name, access, lambda _: None, Patience(reach_s=0.0))


def _workers(deployment: Deployment) -> Iterator[tuple[str, str, list[Described]]]:
    """Each machine's rented name, the name of its host if it is one of the user's own, and its workers."""
    placement, identity = placed(deployment.paths)
    for pool, described in deployment.description.pools.items():
        for place, seated in seats(pool, described, placement):
            workers = [Described(seat.worker, seat.worker, worker_url(seat.port), pool) for seat in seated]
            yield identity.machine(place.machine, place.generation), place.offer.region, workers


async def _ask_router(deployment: Deployment) -> RouterSays | None:
    try:
        async with asyncio.timeout(ROUTER_ANSWERS_WITHIN_S), deployment.admin() as admin:
            return RouterSays(await admin.workers(), await admin.pools())
    except (RouterClientError, TimeoutError):
        return None
