"""Which of the offers a pool should take, and why not the others. Pure: offers, a wish and a fleet's figures in.

An offer that fits is judged by dollars an image: its live price over what its GPUs make in an hour. A cheaper hour
on a slower card may be the dearer image. Who takes which offer is `infra.planning.placement`'s decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from infra.clouds import Market, Offer
from infra.costs.gpus import PIXELS, STEPS, Fleet, GpuModel, Speed, calibrated, why_not
from worker.contract import Tier


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pool asks for. Empty `gpus` or `regions` mean any; `gpus` are in order of preference."""

    market: Market
    tier: Tier
    gpus: tuple[GpuModel, ...] = ()
    regions: tuple[str, ...] = ()
    gpus_per_machine: int = 1
    max_price: float | None = None


@dataclass(frozen=True, slots=True)
class Considered:
    """An offer and what is made of it. `refused` says why it does not fit; it is empty for one that does."""

    offer: Offer
    refused: str = ""
    speed: Speed | None = None
    steps: int = STEPS
    pixels: int = PIXELS

    @property
    def images_per_hour(self) -> float:
        """Of the whole machine, one worker a GPU."""
        return self.speed.images_per_hour(self.steps, self.pixels) * self.offer.gpus if self.speed else 0.0

    @property
    def dollars_per_image(self) -> float:
        """At full use: an idle hour costs as much."""
        return self.offer.price / self.images_per_hour if self.images_per_hour else float("inf")

    @property
    def why(self) -> str:
        """In a few words, for people."""
        if self.refused or self.speed is None:
            return self.refused
        return f"${self.dollars_per_image:.4f} an image ({self.speed.basis} {self.images_per_hour:,.0f} images/h)"


@dataclass(frozen=True, slots=True)
class Workload:
    """The image that costs are compared for."""

    steps: int = STEPS
    pixels: int = PIXELS


@dataclass(frozen=True, slots=True)
class Judge:
    """What offers are judged by: the fleet's own figures (`infra.costs.gpus.calibrated`), and for which image."""

    fleet: Fleet = field(default_factory=dict)
    workload: Workload = Workload()

    def consider(self, offers: Sequence[Offer], wish: Wish) -> tuple[Considered, ...]:
        """The ones that fit, from the cheapest image on; then those that do not, by their names."""
        found = [self.judge(offer, wish) for offer in offers]

        def rank(one: Considered) -> tuple[bool, float, int, str]:
            liked = wish.gpus.index(GpuModel(one.offer.gpu)) if not one.refused and wish.gpus else 0
            return (bool(one.refused), 0.0 if one.refused else one.dollars_per_image, liked, one.offer.id)

        return tuple(sorted(found, key=rank))

    def judge(self, offer: Offer, wish: Wish) -> Considered:
        """One offer."""
        model = next((model for model in GpuModel if model == offer.gpu), None)
        refused = refusal(offer, model, wish)
        speed = None if refused or model is None else calibrated(model, wish.tier, self.fleet)
        return Considered(offer, refused, speed, self.workload.steps, self.workload.pixels)


def refusal(offer: Offer, model: GpuModel | None, wish: Wish) -> str:
    """Why an offer does not fit a wish; empty if it does."""
    reasons = (
        (offer.market is not wish.market, f"{offer.market}; the pool wants {wish.market}"),
        (model is None, f"{offer.gpu} is not in the catalogue"),
        (bool(wish.gpus) and model not in wish.gpus, "not in the pool's `gpus`"),
        (bool(wish.regions) and offer.region not in wish.regions, f"{offer.region} is not in the pool's `regions`"),
        (offer.gpus != wish.gpus_per_machine, f"{offer.gpus} GPUs; the pool wants {wish.gpus_per_machine} a machine"),
        (wish.max_price is not None and offer.price > wish.max_price, f"${offer.price:.2f}/h is above `max_price`"),
    )
    said = next((reason for holds, reason in reasons if holds), "")
    return said or (why_not(model, wish.tier) or "" if model else "")
