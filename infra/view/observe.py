"""Asking a deployed stack how it is: its hosts about their units, its router about workers and jobs.

What comes of the answers is pure (`infra.view.status`). Whatever does not answer is left out, not waited for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

from infra.clouds import Access, Machine
from infra.deployment import Deployment
from infra.hosts import Host, UnitStatus
from infra.planning.planner import placed
from infra.planning.program import access_of, seats
from infra.provider.elsewhere import host_of
from infra.provider.router_host import EDGE, ROUTER
from infra.provider.site import Site
from infra.provider.worker_host import worker_url
from infra.ssh.target import Patience
from infra.view.status import Described, RouterSays, Row, rows
from router.client import AdminClient, RouterClientError

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
    site = Site(deployment.paths, os.environ)
    endpoint = deployment.endpoint
    front = site.router_host()
    kept = [
        Kept(front, Described(EDGE, EDGE, endpoint.url)),
        Kept(front, Described(ROUTER, ROUTER, endpoint.admin_url)),
    ]
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
        async with asyncio.timeout(ROUTER_ANSWERS_WITHIN_S), AdminClient(deployment.endpoint.admin_url) as admin:
            return RouterSays(await admin.workers(), await admin.pools())
    except (RouterClientError, TimeoutError):
        return None
