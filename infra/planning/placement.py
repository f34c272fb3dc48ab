"""Which offer each described machine takes: decided before the preview, and kept while it is valid.

A pure function of the description, what the clouds sell now, and what was decided before. A machine that
has to take another offer becomes a new generation of itself: another name, so that its predecessor is
never mistaken for it. Which offers suit a pool, and at what cost an image, is `infra.costs.choice`'s. Reading and
writing the decision is all the I/O here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from infra.clouds import Market, Offer
from infra.clouds.local import gpu_index
from infra.costs.choice import Judge, Wish
from infra.errors import InfraError
from infra.files import replace_file
from infra.stack import TINY, CloudName, Device, Fallback, Pool, StackDescription

SHOWN_REASONS = 6


class PlacementError(InfraError):
    """No offer suits a described machine; the message says which and what to change."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One machine's place. `machine` is its name in the stack, such as `batch-1`; generations count from 1."""

    machine: str
    offer: Offer
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """A place for every machine of a stack. `numbers` are how many machines watch gave to the pools that it scales."""

    machines: tuple[Placed, ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()

    def of(self, machine: str) -> Placed | None:
        return next((placed for placed in self.machines if placed.machine == machine), None)


_JSON = TypeAdapter(Placement)


def machine_names(pool: str, count: int) -> tuple[str, ...]:
    return tuple(f"{pool}-{number}" for number in range(1, count + 1))


def pool_of(machine: str) -> str:
    """The pool of a machine, by its name."""
    return machine.rpartition("-")[0]


def names(pool: str, described: Pool, previous: Placement) -> tuple[str, ...]:
    """The machines of a pool by their names. One that scales keeps those that it has, whichever are gone between."""
    wanted = count(pool, described, previous)
    if described.scale is None:
        return machine_names(pool, wanted)
    has = [placed.machine for placed in previous.machines if pool_of(placed.machine) == pool]
    free = (name for name in machine_names(pool, described.most) if name not in has)
    return tuple([*has, *free][:wanted])


def wants_gpu(description: StackDescription, pool: Pool) -> bool:
    """Whether the pool's workers compute on a GPU: as it says, or else by the weights."""
    return pool.device is Device.GPU or (pool.device is Device.AUTO and description.model != TINY)


def devices(offer: Offer) -> tuple[str, ...]:
    """What the workers of a machine on this offer compute on, one worker each, as torch names it."""
    if not offer.gpus:
        return ("cpu",)
    here = gpu_index(offer.id) if offer.cloud == CloudName.LOCAL else None
    return (f"cuda:{here}",) if here is not None else tuple(f"cuda:{index}" for index in range(offer.gpus))


def wishes(pool: Pool) -> tuple[Wish, ...]:
    """What a pool asks for, and what it would take instead."""
    wish = Wish(pool.market, pool.tier, pool.gpus, pool.regions, pool.gpus_per_machine, pool.max_price)
    if pool.market is Market.SPOT and pool.fallback is Fallback.ON_DEMAND:
        return (wish, replace(wish, market=Market.ON_DEMAND))
    return (wish,)


def place(
    description: StackDescription,
    offers: Sequence[Offer],
    previous: Placement,
    alive: frozenset[str] = frozenset(),
    judge: Judge = Judge(),  # noqa: B008 - a value
) -> Placement:
    """Choose an offer for every machine. Raises PlacementError if one goes without.

    First every machine keeps what it had, if that still suits and is still offered (for what it costs now), or if the
    machine is `alive`: what runs is not given up because nobody else can rent it any more. Then those without take the
    best that is left. Where the stack has a budget, what is to be rented yet takes the best with which the rest still
    finds room; a machine that is alive is never given up for that.
    """
    wanted = dict(_machines(description, previous))
    kept = _kept(description, wanted, {offer.id: offer for offer in offers}, previous, alive)
    ranked = {name: _ranked(description, pool, offers, judge) for name, pool in description.pools.items()}
    to_rent = {
        machine: (*((kept[machine].offer,) if machine in kept else ()), *ranked[pool_of(machine)])
        for machine in wanted
        if machine not in kept or machine not in alive
    }
    spent = sum(placed.offer.price for machine, placed in kept.items() if machine not in to_rent)
    least = {machine: min((offer.price for offer in suiting), default=0.0) for machine, suiting in to_rent.items()}
    _require_room(description, spent, least)
    taken = {each for placed in kept.values() for each in _exclusive(placed.offer)}
    found: dict[str, Placed] = dict(kept)
    for machine, suiting in to_rent.items():
        mine, others = kept.get(machine), spent + sum(least.values()) - least.pop(machine)
        free = (each for each in suiting if (mine and each == mine.offer) or taken.isdisjoint(_exclusive(each)))
        offer = next((each for each in free if _fits(description, others + each.price)), None)
        if offer is None:
            raise PlacementError(_no_offer(description, machine, wanted[machine], offers, judge))
        spent += offer.price
        if mine is None or offer != mine.offer:
            taken.update(_exclusive(offer))
            before = previous.of(machine)
            found[machine] = Placed(machine, offer, before.generation + 1 if before else 1)
    return Placement(tuple(found[machine] for machine in wanted), previous.numbers)


def _kept(
    description: StackDescription,
    wanted: Mapping[str, Pool],
    offered: Mapping[str, Offer],
    previous: Placement,
    alive: frozenset[str],
) -> dict[str, Placed]:
    """The machines that may keep what they had."""
    taken: set[str] = set()
    kept: dict[str, Placed] = {}
    for machine, pool in wanted.items():
        before = previous.of(machine)
        if before is None or not _suits(before.offer, description, pool):
            continue
        lives, now = machine in alive, offered.get(before.offer.id)
        if not lives and (now is None or (pool.max_price is not None and now.price > pool.max_price)):
            continue
        # What is rented stays as it was rented; what is to be rented yet, or is one's own, is as it is offered now.
        mine = before.offer if now is None or (lives and description.cloud != CloudName.HOSTS) else now
        if not taken.isdisjoint(_exclusive(before.offer)):
            continue
        taken.update(_exclusive(before.offer))
        kept[machine] = replace(before, offer=mine)
    return kept


def _require_room(description: StackDescription, spent: float, least: Mapping[str, float]) -> None:
    """Raise PlacementError, by the first machine that finds no room in the budget though all take the `least`."""
    for machine, price in least.items():
        spent += price
        if not _fits(description, spent):
            raise PlacementError(
                f"stack {description.name}: with {machine} its machines would cost ${spent:.2f} an hour, and "
                f"`budget_per_hour` is ${description.budget_per_hour:.2f}; raise it, or describe fewer or cheaper "
                "machines"
            )


def _fits(description: StackDescription, spent: float) -> bool:
    """Whether so many dollars an hour are within the stack's budget."""
    budget = description.budget_per_hour
    return budget is None or spent <= budget + 1e-9


def read_placement(file: Path) -> Placement:
    """What was decided before; nothing, if there is no file."""
    try:
        return _JSON.validate_json(file.read_bytes())
    except FileNotFoundError:
        return Placement()
    except ValidationError as error:
        raise PlacementError(f"{file} is not a placement ({error.error_count()} errors); restore it") from error


def write_placement(file: Path, placement: Placement) -> None:
    """Keep the decision; a reader sees the old one or the new one, whole."""
    replace_file(file, _JSON.dump_json(placement, indent=2) + b"\n")


def count(pool: str, described: Pool, previous: Placement) -> int:
    """How many machines a pool has: as many as were decided last, where its number is watch's, within its bounds."""
    if described.scale is None:
        return described.machines
    decided = dict(previous.numbers).get(pool, described.machines)
    return min(max(decided, described.scale.least), described.scale.most)


def _machines(description: StackDescription, previous: Placement) -> Iterator[tuple[str, Pool]]:
    for name, pool in description.pools.items():
        for machine in names(name, pool, previous):
            yield machine, pool


def _suits(offer: Offer, description: StackDescription, pool: Pool) -> bool:
    """Whether it is what the pool asks for, whatever it costs by now."""
    if offer.cloud != description.cloud:
        return False
    if offer.cloud == CloudName.LOCAL:
        return offer.market == pool.market and bool(offer.gpus) == wants_gpu(description, pool)
    if offer.cloud == CloudName.HOSTS:
        wanted = not wants_gpu(description, pool) or offer.gpus > 0
        return wanted and offer.market == pool.market and offer.region in (pool.hosts or description.hosts)
    unpriced = (replace(wish, max_price=None) for wish in wishes(pool))
    return any(not Judge().judge(offer, wish).refused for wish in unpriced)


def _ranked(description: StackDescription, pool: Pool, offers: Sequence[Offer], judge: Judge) -> list[Offer]:
    """Offers that suit the pool, the best first; what it would take instead comes after all that it wants."""
    if description.cloud == CloudName.LOCAL:
        return sorted((o for o in offers if _suits(o, description, pool)), key=lambda offer: (offer.price, offer.id))
    if description.cloud == CloudName.HOSTS:
        names = list(pool.hosts or description.hosts)
        return sorted((o for o in offers if _suits(o, description, pool)), key=lambda offer: names.index(offer.region))
    own = [offer for offer in offers if offer.cloud == description.cloud]
    considered = [judge.consider(own, wish) for wish in wishes(pool)]
    return [one.offer for each in considered for one in each if not one.refused]


def _exclusive(offer: Offer) -> tuple[str, ...]:
    """What no two machines can have: a GPU of this computer, in whichever market. Clouds have stock."""
    if offer.cloud == CloudName.HOSTS:
        return (f"host-{offer.region}",)
    index = gpu_index(offer.id) if offer.cloud == CloudName.LOCAL else None
    return () if index is None else (f"gpu-{index}",)


def _no_offer(description: StackDescription, machine: str, pool: Pool, offers: Sequence[Offer], judge: Judge) -> str:
    if description.cloud == CloudName.HOSTS:
        return (
            f"stack {description.name}: no host is left for {machine}. `hosts` names {len(description.hosts)}, "
            "and each machine takes one; describe another, or lower the pools' `machines`"
        )
    if description.cloud != CloudName.LOCAL:
        reasons = Counter(one.why for one in judge.consider(offers, wishes(pool)[0]))
        said = "; ".join(f"{number} x {why}" for why, number in reasons.most_common(SHOWN_REASONS))
        return (
            f"stack {description.name}: no offer of {description.cloud} suits {machine}, of {len(offers)} looked at"
            f"{': ' if said else ''}{said}. `make plan STACK={description.name}` shows each; widen the pool's `gpus`, "
            "`regions` or `max_price`, or try again later"
        )
    wanting = [(name, pool) for name, pool in description.pools.items() if wants_gpu(description, pool)]
    wanted = sum(pool.machines for _, pool in wanting)
    there = len({key for offer in offers for key in _exclusive(offer)})
    settings = ", ".join(f"`pools.{name}.machines`" for name, pool in wanting if pool.machines)
    return (
        f"stack {description.name}: {description.model} wants a GPU for each of {wanted} machine(s), and this computer "
        f"offers {there}. Lower {settings}, or take STACK=gpu, which describes one machine; MODEL=tiny needs no GPU"
    )
