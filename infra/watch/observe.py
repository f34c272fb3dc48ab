"""What watch sees: the cloud's machines, the router's queue and workers, offers. Asking only; `decide` concludes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.clouds import Cloud, CloudError, Machine, Observed, Offer, Phase, Presence
from infra.costs.choice import Considered, Judge
from infra.costs.figures import by_card, counted, keep_figures, read_figures
from infra.deployment import Deployment
from infra.identity import Identity
from infra.planning.placement import Placed, Placement, pool_of, wishes
from infra.planning.program import worker_names
from infra.stack import StackDescription
from infra.watch.decide import PoolSeen, Seen, World, idle_again
from infra.watch.silence import COMES_UP_WITHIN_S, Asked, Silence
from router.client import RouterClientError
from router.contract import PoolView, WorkerView

ROUTER_ANSWERS_WITHIN_S = 5.0
OFFERS_FRESH_S = 60.0
"""Prices move by the day; asked again at once when a machine is lost."""


@dataclass(frozen=True, slots=True)
class RouterSees:
    """The router's word, or None in its place while it is away."""

    pools: Mapping[str, PoolView]
    workers: Mapping[str, WorkerView]


@dataclass(slots=True)
class Observer:
    """Keeps between rounds what a single look does not tell: since when a machine is idle, the last offers."""

    deployment: Deployment
    cloud: Cloud
    identity: Identity
    began: float
    idle_since: dict[str, float] = field(default_factory=dict)
    silence: Silence = field(init=False)
    offers: tuple[Offer, ...] = ()
    offers_at: float = -1e12

    def __post_init__(self) -> None:
        self.silence = Silence(self.deployment.paths.root / "served.json")

    async def look(self, placement: Placement, now: float) -> World:
        """Everything at once. Raises CloudError if the cloud does not say what there is."""
        description = self.deployment.description
        there, router = await asyncio.gather(self.cloud.list(self.identity.id), self._router(placement))
        by_name = {machine.name: machine for machine in there}
        self._note_idle(placement, router, by_name, now)
        await self.silence.note(self._asked(placement, router, by_name, now), now)
        machines = [self._seen(placed, by_name, now) for placed in placement.machines]
        lost = any(each.presence is Presence.GONE for each in machines)
        if lost or now - self.offers_at >= OFFERS_FRESH_S:
            self.offers, self.offers_at = tuple(await self.cloud.offers()), now
        judge = Judge(read_figures(self.deployment.paths))
        pools = tuple(self._pool(name, machines, router, judge, description) for name in description.pools)
        hours = description.lives_for_hours
        return World(now, placement, pools, None if hours is None else self.began + 3600 * hours)

    def _seen(self, placed: Placed, there: Mapping[str, Machine], now: float) -> Seen:
        machine = there.get(self.identity.machine(placed.machine, placed.generation))
        if machine is None:
            return Seen(placed, Presence.GONE, reason="it is not there")
        if machine.phase is Phase.STOPPED:
            return Seen(placed, Presence.GONE, reason="it has stopped")
        idle = now - self.idle_since[placed.machine] if placed.machine in self.idle_since else 0.0
        silent, greets = self.silence.since.get(machine.id), machine.id in self.silence.greeting
        return Seen(placed, Presence.THERE, _age(machine, now), idle, silent_since=silent, greets=greets)

    def _pool(
        self, name: str, machines: list[Seen], router: RouterSees | None, judge: Judge, description: StackDescription
    ) -> PoolSeen:
        own, *others = (judge.consider(self.offers, wish) for wish in wishes(description.pools[name]))
        instead: tuple[Considered, ...] = tuple(one for each in others for one in each)
        view = router.pools.get(name) if router else None
        queued = (view.queued if view else 0) if router else None
        mine = tuple(each for each in machines if pool_of(each.placed.machine) == name)
        return PoolSeen(name, mine, queued, own, instead)

    def _note_idle(
        self, placement: Placement, router: RouterSees | None, there: Mapping[str, Machine], now: float
    ) -> None:
        """A machine whose workers the router does not know yet is coming up, which is work; but not for ever."""
        if router is None:
            self.idle_since = {}
            return
        busy = {}
        for placed in placement.machines:
            views = [router.workers.get(worker) for worker in worker_names(placed)]
            view = router.pools.get(pool_of(placed.machine))
            waiting = bool(view and view.queued)
            machine = there.get(self.identity.machine(placed.machine, placed.generation))
            young = machine is None or _age(machine, now) < COMES_UP_WITHIN_S
            busy[placed.machine] = waiting or any(young if each is None else each.running for each in views)
        self.idle_since = idle_again(self.idle_since, busy, now)

    def _asked(
        self, placement: Placement, router: RouterSees | None, there: Mapping[str, Machine], now: float
    ) -> list[Asked]:
        """What there is to hear of each machine that has an address."""
        found = (
            (placed, there.get(self.identity.machine(placed.machine, placed.generation)))
            for placed in placement.machines
        )
        return [
            Asked(machine, _workers(placed, router), _age(machine, now))
            for placed, machine in found
            if machine and machine.address
        ]

    async def _router(self, placement: Placement) -> RouterSees | None:
        try:
            async with (
                asyncio.timeout(ROUTER_ANSWERS_WITHIN_S),
                self.deployment.admin() as admin,
            ):
                pools, workers, metrics = await admin.pools(), await admin.workers(), await admin.metrics()
        except (RouterClientError, TimeoutError):
            return None
        fleet = by_card(counted(metrics), self.deployment.description, placement)
        if fleet:
            keep_figures(self.deployment.paths, {**read_figures(self.deployment.paths), **fleet})
        return RouterSees({pool.name: pool for pool in pools}, {worker.name: worker for worker in workers})


def _workers(placed: Placed, router: RouterSees | None) -> list[WorkerView]:
    """The machine's, as far as the router knows them."""
    views = [router.workers.get(worker) for worker in worker_names(placed)] if router else []
    return [view for view in views if view]


def _age(machine: Machine, now: float) -> float:
    """Seconds since it is paid for; 0 where its cloud does not say."""
    return max(0.0, now - machine.rented_at.timestamp()) if machine.rented_at else 0.0


async def verified(cloud: Cloud, world: World, identity: Identity) -> World:
    """The world with the cloud's own word on each machine that its list lacks: taken back, gone, or not known.

    A machine is concluded to be gone only if a look at its name finds none, too; otherwise nothing is known of it.
    """

    async def asked(seen: Seen) -> Seen:
        if seen.presence is not Presence.GONE:
            return seen
        name = identity.machine(seen.placed.machine, seen.placed.generation)
        observed = await _by_name(cloud, name)
        if observed.presence is Presence.GONE:
            return seen
        return Seen(seen.placed, observed.presence, reason=observed.reason)

    pools = [
        PoolSeen(
            pool.name, tuple([await asked(seen) for seen in pool.machines]), pool.queued, pool.offers, pool.instead
        )
        for pool in world.pools
    ]
    return World(world.now, world.placement, tuple(pools), world.ends_at)


async def _by_name(cloud: Cloud, name: str) -> Observed:
    try:
        found = await cloud.find(name)
    except CloudError as error:
        return Observed(Presence.UNKNOWN, reason=str(error))
    if found is None or found.phase is Phase.STOPPED:
        return Observed(Presence.GONE)
    return Observed(Presence.THERE, found)
