"""What to do about a stack's machines, decided from plain values: (seen, offers, clock) → placement and reasons.

The rules, in this order. A stack whose time is over ends. A machine that is gone is replaced: by spot if its pool
wants spot, else by what the pool takes instead; so is one that answers nobody any more though its cloud lists it as
running, once that has lasted, if another machine's sshd shows that the fault is not on our side, and once its minimum
run time is over, which is paid in any case: until then a pool that scales does without it. A pool that scales follows
its backlog up at once, and down when a machine has had nothing to do for long enough and its minimum run time
is over. A machine that was rented on demand in spot's place goes back to spot once spot has been there for as long as a
cold start takes (hysteresis: without it a fifth of the saving goes into changing over), and pays. Nothing exceeds the
hourly budget. What is not known changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from infra.clouds import Market, Offer, Presence
from infra.costs.choice import Considered
from infra.planning.placement import Placed, Placement, pool_of
from infra.stack import Pool, StackDescription

SPOT_STAYS_S = 900.0
"""A cold start: boot, image, weights, warm-up."""
SILENT_S = 120.0
"""A restart takes a minute or two; a replacement takes a cold start, and the old machine's minimum run time is paid."""
PAYS = 0.9
"""Spot must cost less than this part of what runs, an image: a change-over costs something, too."""


class Deed(StrEnum):
    REPLACE = "replace"  # what was lost
    GROW = "grow"
    SHRINK = "shrink"
    RETURN = "return"  # from on demand to spot
    END = "end"  # everything
    HOLD = "hold"  # something should be done and cannot be, and why


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that is done, or held back. `why` is for people."""

    deed: Deed
    machine: str
    why: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A placed machine as it is now. `age_s` since it is paid for; `idle_s` since it last had something to do.

    `silent_since` (seconds since the epoch) if it served, and neither router nor watch reach it any more; `greets` if
    its sshd greeted watch in this very look, which asks for that only while another is silent.
    """

    placed: Placed
    presence: Presence
    age_s: float = 0.0
    idle_s: float = 0.0
    reason: str = ""
    silent_since: float | None = None
    greets: bool = False

    @property
    def spared(self) -> bool:
        """Nothing to do, and no minimum run time to pay for in any case."""
        return self.idle_s > 0 and not self.young

    @property
    def young(self) -> bool:
        """Its minimum run time is paid for whether it is given back or not."""
        return self.age_s < self.placed.offer.minimum_s


@dataclass(frozen=True, slots=True)
class PoolSeen:
    """A pool: its machines, what waits for it (None: the router did not say), and offers, the best first.

    `offers` are of the market that it wants, `instead` of what it would take.
    """

    name: str
    machines: tuple[Seen, ...]
    queued: int | None = 0
    offers: tuple[Considered, ...] = ()
    instead: tuple[Considered, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is seen at once. `now` and `ends_at` are seconds since the epoch."""

    now: float
    placement: Placement
    pools: tuple[PoolSeen, ...]
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decision needs of the rounds before: since when spot has been on offer, by pool."""

    spot_since: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    placement: Placement
    actions: tuple[Action, ...]
    memory: Memory

    @property
    def ends(self) -> bool:
        return any(action.deed is Deed.END for action in self.actions)


def decide(description: StackDescription, world: World, memory: Memory = Memory()) -> Decision:
    """What to do now."""
    spot_since = _spot_since(description, world, memory)
    if world.ends_at is not None and world.now >= world.ends_at:
        why = f"its {description.lives_for_hours:g} hours are over"
        return Decision(Placement(), (Action(Deed.END, description.name, why),), Memory())
    desk = _Desk(description, world, spot_since)
    for pool in world.pools:
        desk.shrink(pool)
    for pool in world.pools:
        desk.replace_lost(pool)
        desk.replace_silent(pool)
    for pool in world.pools:
        desk.grow(pool)
    for pool in world.pools:
        desk.return_to_spot(pool)
    return Decision(desk.placement(), tuple(desk.actions), Memory(spot_since))


@dataclass(slots=True)
class _Desk:
    """One decision under way: places as they will be."""

    description: StackDescription
    world: World
    spot_since: Mapping[str, float]
    places: dict[str, Placed] = field(init=False)
    hanging: Mapping[str, bool] = field(init=False)
    """Machines that are silent beyond doubt; whether they are kept, because they are paid for still."""
    actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.places = {placed.machine: placed for placed in self.world.placement.machines}
        seen = [each for pool in self.world.pools for each in pool.machines]
        heard = any(each.greets for each in seen)
        self.hanging = {each.placed.machine: each.young for each in seen if heard and self._lasts(each)}

    def placement(self) -> Placement:
        numbers = tuple(
            (name, len(self._of(name))) for name, pool in self.description.pools.items() if pool.scale is not None
        )
        order = {name: index for index, name in enumerate(self.description.pools)}

        def rank(placed: Placed) -> tuple[int, int]:
            return order[pool_of(placed.machine)], _number(placed.machine)

        return Placement(tuple(sorted(self.places.values(), key=rank)), numbers)

    def shrink(self, seen: PoolSeen) -> None:
        """Give back what has had nothing to do for long enough; first, and gladly, what is gone anyway."""
        pool = self._pool(seen)
        if pool.scale is None or seen.queued is None:
            return
        wanted = self._wanted(seen, pool)
        spare = self._working(seen.name) - max(wanted, pool.scale.least)
        gone = [each for each in seen.machines if each.presence is Presence.GONE or self._given_up(each)]
        # The dearest image first: what was rented on demand in spot's place.
        idle = sorted(
            (each for each in seen.machines if self._idle(each) and not seen.queued),
            key=lambda each: (each.placed.offer.market is pool.market, -each.placed.offer.price, each.placed.machine),
        )
        for each in [*gone, *(each for each in idle if each.idle_s >= pool.scale.idle_s)]:
            if spare <= 0:
                return
            self._drop(each.placed.machine, self._why_spare(each))
            spare -= 1

    def replace_lost(self, seen: PoolSeen) -> None:
        for each in seen.machines:
            if each.presence is Presence.GONE and each.placed.machine in self.places:
                self._replace(seen, each.placed, each.reason or "it is gone")

    def replace_silent(self, seen: PoolSeen) -> None:
        for each in seen.machines:
            machine = each.placed.machine
            if each.presence is not Presence.THERE or each.silent_since is None or machine not in self.places:
                continue
            because = _silence(each.silent_since)
            if self._given_up(each):
                self._replace(seen, each.placed, because)
            else:
                self.actions.append(Action(Deed.HOLD, machine, f"{because}{self._why_kept(each)}"))

    def _idle(self, each: Seen) -> bool:
        return each.presence is Presence.THERE and each.spared and each.placed.machine not in self.hanging

    def _lasts(self, each: Seen) -> bool:
        since = each.silent_since
        return each.presence is Presence.THERE and since is not None and self.world.now - since >= SILENT_S

    def _given_up(self, each: Seen) -> bool:
        return self.hanging.get(each.placed.machine) is False

    def _why_kept(self, each: Seen) -> str:
        """A machine that is silent, and not given up yet."""
        if not any(one.greets for pool in self.world.pools for one in pool.machines):
            return "; nor does another machine's sshd greet watch just now, so the fault may be here: it is kept"
        if not self._lasts(each):
            return f", and its cloud lists it as running; it is replaced after {SILENT_S:.0f} s of that"
        until = datetime.fromtimestamp(round(self.world.now - each.age_s + each.placed.offer.minimum_s), UTC)
        return f"; it is paid for until {until:%H:%M:%S} UTC in any case (its minimum run time), and is replaced then"

    def _why_spare(self, each: Seen) -> str:
        if each.presence is Presence.GONE:
            return "it is gone, and not needed now"
        if self._given_up(each) and each.silent_since is not None:
            return f"{_silence(each.silent_since)}, and is not needed now"
        return f"nothing to do for {each.idle_s:.0f} s"

    def _replace(self, seen: PoolSeen, lost: Placed, because: str) -> None:
        spent = self._spent(without=lost.machine)
        offer = self._affordable(seen, spent)
        if offer is None:
            self.actions.append(Action(Deed.HOLD, lost.machine, f"{because}; {self._why_none(seen, spent)}"))
            return
        self.places[lost.machine] = Placed(lost.machine, offer, lost.generation + 1)
        self.actions.append(Action(Deed.REPLACE, lost.machine, f"{because}; takes {_said(offer)}"))

    def grow(self, seen: PoolSeen) -> None:
        pool = self._pool(seen)
        if pool.scale is None or seen.queued is None:
            return
        wanted = self._wanted(seen, pool)
        while self._working(seen.name) < wanted and len(self._of(seen.name)) < pool.most:
            machine = next(
                name for name in (f"{seen.name}-{n}" for n in range(1, pool.most + 1)) if name not in self.places
            )
            spent = self._spent()
            offer = self._affordable(seen, spent)
            why = f"{seen.queued} waiting" if seen.queued else f"at least {pool.scale.least} are wanted"
            if offer is None:
                self.actions.append(Action(Deed.HOLD, machine, f"{why}; {self._why_none(seen, spent)}"))
                return
            self.places[machine] = Placed(machine, offer, self._generation())
            self.actions.append(Action(Deed.GROW, machine, f"{why}; takes {_said(offer)}"))

    def return_to_spot(self, seen: PoolSeen) -> None:
        """One machine a round, and only in a pool in which nothing else happens."""
        pool, since = self._pool(seen), self.spot_since.get(seen.name)
        if pool.market is not Market.SPOT or since is None or self.world.now - since < SPOT_STAYS_S:
            return
        if any(pool_of(action.machine) == seen.name for action in self.actions):
            return
        spot = next((one for one in seen.offers if not one.refused), None)
        costs = {one.offer.id: one.dollars_per_image for one in seen.instead}
        for each in seen.machines:
            now = each.placed.offer
            if now.market is Market.SPOT or each.presence is not Presence.THERE or each.young or not spot:
                continue
            # Where its own price is not listed any more, spot's own card tells: the dearer hour is the dearer image.
            cost = costs.get(now.id, spot.dollars_per_image * now.price / spot.offer.price)
            budget = self.description.budget_per_hour
            fits = budget is None or self._spent(without=each.placed.machine) + spot.offer.price <= budget + 1e-9
            if spot.dollars_per_image < PAYS * cost and fits:
                machine = each.placed.machine
                self.places[machine] = Placed(machine, spot.offer, each.placed.generation + 1)
                why = f"spot is back since {self.world.now - since:.0f} s: {_said(spot.offer)} instead of {_said(now)}"
                self.actions.append(Action(Deed.RETURN, machine, why))
                return

    def _wanted(self, seen: PoolSeen, pool: Pool) -> int:
        """As many machines as are through with what waits in time, within the pool's bounds."""
        assert pool.scale  # noqa: S101 - asked by the callers
        queued = seen.queued or 0
        best = next((one for one in (*seen.offers, *seen.instead) if not one.refused), None)
        a_machine = best.images_per_hour * pool.scale.wait_s / 3600 if best else math.inf
        needed = math.ceil(queued / max(a_machine, 1e-9)) if queued else 0
        return min(max(needed, 1 if queued else 0, pool.scale.least), pool.scale.most)

    def _affordable(self, seen: PoolSeen, spent: float) -> Offer | None:
        budget = self.description.budget_per_hour
        return next((o for o in _fitting(seen) if budget is None or spent + o.price <= budget + 1e-9), None)

    def _why_none(self, seen: PoolSeen, spent: float) -> str:
        cheapest = min((offer.price for offer in _fitting(seen)), default=None)
        if cheapest is None:
            return "no offer suits its pool now"
        return f"${spent:.2f} an hour are spent, and the least that is offered (${cheapest:.2f}) exceeds the budget"

    def _spent(self, without: str = "") -> float:
        return sum(placed.offer.price for name, placed in self.places.items() if name != without)

    def _generation(self) -> int:
        """A number that its name never had: what was dropped is not remembered, so it is taken from the clock."""
        return max(1, int(self.world.now // 60))

    def _drop(self, machine: str, why: str) -> None:
        del self.places[machine]
        self.actions.append(Action(Deed.SHRINK, machine, why))

    def _of(self, pool: str) -> list[str]:
        return [machine for machine in self.places if pool_of(machine) == pool]

    def _working(self, pool: str) -> int:
        """How many of a pool's machines work, or will: one that hangs and is paid for still is none of them."""
        return sum(not self.hanging.get(machine, False) for machine in self._of(pool))

    def _pool(self, seen: PoolSeen) -> Pool:
        return self.description.pools[seen.name]


def _spot_since(description: StackDescription, world: World, memory: Memory) -> Mapping[str, float]:
    return {
        seen.name: memory.spot_since.get(seen.name, world.now)
        for seen in world.pools
        if description.pools[seen.name].market is Market.SPOT and any(not one.refused for one in seen.offers)
    }


def _fitting(seen: PoolSeen) -> Iterator[Offer]:
    return (one.offer for one in (*seen.offers, *seen.instead) if not one.refused)


def _number(machine: str) -> int:
    return int(machine.rpartition("-")[2])


def _silence(since: float) -> str:
    return f"answers nobody since {datetime.fromtimestamp(since, UTC):%H:%M:%S}"


def _said(offer: Offer) -> str:
    return f"{offer.gpu} ({offer.market}, {offer.region}, ${offer.price:.2f}/h)"


def idle_again(before: Mapping[str, float], busy: Mapping[str, bool], now: float) -> dict[str, float]:
    """Since when each machine has had nothing to do, from what was known before and who is busy now."""
    return {machine: before.get(machine, now) for machine, at_work in busy.items() if not at_work}
