"""What a stack costs: machines by the hour, images by the dollar, and the same images from the hosted API.

Pure: a description, offers and figures in, values out. Asking the cloud and printing are `infra.costs.plan`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infra.clouds import Offer
from infra.costs.choice import Considered, Judge
from infra.costs.gpus import Fleet
from infra.costs.hosted import HOSTED, Hosted
from infra.planning.placement import Placement, wishes
from infra.stack import StackDescription

HOURS_A_MONTH = 730.0


@dataclass(frozen=True, slots=True)
class BreakEven:
    """An offer beside the hosted API at one of its speeds. `busy` is the share of the time above which it pays."""

    hosted: Hosted
    dollars_per_image: float
    images_per_hour: float
    breaks_even_at: float

    @property
    def busy(self) -> float:
        return self.breaks_even_at / self.images_per_hour


@dataclass(frozen=True, slots=True)
class Month:
    """A volume of images, in US dollars: machines rented all month, or only while they work, and the hosted API."""

    images: int
    machines: int
    always_on: float
    at_full_use: float
    hosted: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool's offers, the best first and the refused last, and what the best means."""

    pool: str
    tier: str
    machines: int
    considered: tuple[Considered, ...]
    instead: tuple[Considered, ...]
    break_even: tuple[BreakEven, ...]
    month: Month | None

    @property
    def best(self) -> Considered | None:
        return next((one for one in (*self.considered, *self.instead) if not one.refused), None)


def pool_plans(
    description: StackDescription, offers: Sequence[Offer], judge: Judge, images_per_month: int | None
) -> tuple[PoolPlan, ...]:
    """One for each pool."""
    plans = []
    for name, pool in description.pools.items():
        own, *others = (judge.consider(offers, wish) for wish in wishes(pool))
        instead = tuple(one for each in others for one in each if not one.refused)
        best = next((one for one in (*own, *instead) if not one.refused), None)
        even = tuple(break_even(best, hosted, judge) for hosted in HOSTED) if best else ()
        month = monthly(best, images_per_month) if best and images_per_month else None
        plans.append(PoolPlan(name, pool.tier, pool.machines, own, instead, even, month))
    return tuple(plans)


def break_even(one: Considered, hosted: Hosted, judge: Judge) -> BreakEven:
    """At the plan's size, with the steps of the hosted API's preset."""
    workload = hosted.workload(judge.workload.pixels)
    same = Considered(one.offer, "", one.speed, workload.steps, workload.pixels)
    return BreakEven(hosted, same.dollars_per_image, same.images_per_hour, one.offer.price / hosted.dollars)


def monthly(one: Considered, images: int) -> Month:
    machines = math.ceil(images / (one.images_per_hour * HOURS_A_MONTH))
    return Month(
        images,
        machines,
        machines * one.offer.price * HOURS_A_MONTH,
        images * one.dollars_per_image,
        tuple((hosted.name, images * hosted.dollars) for hosted in HOSTED),
    )


@dataclass(frozen=True, slots=True)
class Charge:
    """One machine of a placement. `fresh` says that it is not rented yet."""

    machine: str
    pool: str
    offer: Offer
    fresh: bool
    dollars_per_image: float | None


def charges(
    description: StackDescription, placement: Placement, alive: frozenset[str], fleet: Fleet
) -> tuple[Charge, ...]:
    """What a placement costs, by machine; nothing where nothing is rented."""
    judge = Judge(fleet)
    found = []
    for placed in placement.machines:
        pool = placed.machine.rpartition("-")[0]
        described = description.pools.get(pool)
        if described is None or not placed.offer.price:
            continue
        judged = [judge.judge(placed.offer, wish) for wish in wishes(described)]
        price = next((one.dollars_per_image for one in judged if not one.refused), None)
        found.append(Charge(placed.machine, pool, placed.offer, placed.machine not in alive, price))
    return tuple(found)
