"""The catalogue of GPUs: memory, number formats, and how fast each makes an image in each tier.

Speeds of the H200 are measured (docs/bench-gpu.json); those of every other card are derived from its profile and
the ratio of both cards' published rates, and say so. Neither is a promise: once a fleet has made images of its
own, its figures win (`calibrated`), for the card that made them and, by the same ratio, for those beside it.
What an image costs follows from a speed and a price: `infra.costs.choice`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from worker.contract import Tier

STEPS = 25
"""Of the published guide's image, 1024x1024; what a speed without further word is about."""
PIXELS = 1024 * 1024


class Family(StrEnum):
    """An architecture, which decides the tiers that a card can run (`worker.engine.tier`)."""

    AMPERE = "Ampere"
    ADA = "Ada"
    HOPPER = "Hopper"


class GpuModel(StrEnum):
    """The cards that are known, by the names that stack files use."""

    H200 = "H200"
    H100_SXM = "H100-SXM"
    H100_NVL = "H100-NVL"
    H100_PCIE = "H100-PCIe"
    A100_SXM_80 = "A100-SXM-80GB"
    A100_PCIE_80 = "A100-PCIe-80GB"
    A100_SXM_40 = "A100-SXM-40GB"
    A100_PCIE_40 = "A100-PCIe-40GB"
    L40S = "L40S"
    RTX_4090 = "RTX-4090"


@dataclass(frozen=True, slots=True)
class Card:
    """NVIDIA's data sheets: GiB of memory, dense TFLOP/s (TOP/s) by format, TB/s of memory. 0: has none of it."""

    family: Family
    memory_gib: float
    bf16: float
    fp8: float
    int8: float
    bandwidth: float


CARDS: Mapping[GpuModel, Card] = {
    GpuModel.H200: Card(Family.HOPPER, 141, 989, 1979, 1979, 4.8),
    GpuModel.H100_SXM: Card(Family.HOPPER, 80, 989, 1979, 1979, 3.35),
    GpuModel.H100_NVL: Card(Family.HOPPER, 94, 835, 1671, 1671, 3.9),
    GpuModel.H100_PCIE: Card(Family.HOPPER, 80, 756, 1513, 1513, 2.0),
    GpuModel.A100_SXM_80: Card(Family.AMPERE, 80, 312, 0, 624, 2.04),
    GpuModel.A100_PCIE_80: Card(Family.AMPERE, 80, 312, 0, 624, 1.94),
    GpuModel.A100_SXM_40: Card(Family.AMPERE, 40, 312, 0, 624, 1.56),
    GpuModel.A100_PCIE_40: Card(Family.AMPERE, 40, 312, 0, 624, 1.56),
    GpuModel.L40S: Card(Family.ADA, 48, 362, 733, 733, 0.86),
    # Consumer cards add products up in float32 at half their rate.
    GpuModel.RTX_4090: Card(Family.ADA, 24, 165, 330, 661, 1.01),
}

NEEDS_GIB: Mapping[Tier, float] = {
    Tier.EXACT: 42.0,
    Tier.FP8: 26.0,
    Tier.FP8_ATTENTION: 26.0,
    Tier.INT8: 26.0,
    Tier.NF4: 19.0,
}
"""The least that a worker wants for 1024x1024 (`worker.engine.memory`, whose sums a test compares with these)."""
FREE = 0.97
"""Of a card's memory, what is free for a worker: the driver and error correction keep some."""


class Basis(StrEnum):
    """Where a speed is from, from the weakest to the strongest."""

    DERIVED = "derived"
    MEASURED = "measured"
    FLEET = "fleet"


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that an image takes: `around_s` once, `step_s` for each step at 1024x1024.

    `growth` are the exponents by which a step grows with the pixels, below and above 1024x1024.
    """

    step_s: float
    around_s: float
    basis: Basis
    how: str
    growth: tuple[float, float] = (1.0, 1.2)

    def seconds(self, steps: int = STEPS, pixels: int = PIXELS) -> float:
        """Of one image, by one worker that has nothing else to do."""
        area = pixels / PIXELS
        return self.around_s * area + self.step_s * steps * math.pow(area, self.growth[area > 1])

    def images_per_hour(self, steps: int = STEPS, pixels: int = PIXELS) -> float:
        return 3600.0 / self.seconds(steps, pixels)

    def scaled(self, factor: float, basis: Basis, how: str) -> Speed:
        """One whose images take `factor` times as long."""
        return Speed(self.step_s * factor, self.around_s * factor, basis, how, self.growth)


@dataclass(frozen=True, slots=True)
class _Profile:
    """One tier on the H200: milliseconds of a step by what bounds them, and seconds around the steps."""

    products: float
    attention: float
    memory: float
    around_s: float
    growth: tuple[float, float]


_EXACT_GROWTH = (0.98, 1.20)
_PROFILES: Mapping[Tier, _Profile] = {
    Tier.EXACT: _Profile(216.8, 40.8, 14.4, 0.0677, _EXACT_GROWTH),
    Tier.FP8: _Profile(111.9, 41.4, 17.0, 0.0721, (0.97, 1.31)),
    # Below 1024x1024 the host's processor sets the pace of this tier: the better of two hosts.
    Tier.FP8_ATTENTION: _Profile(110.5, 28.9, 17.8, 0.0906, (0.88, 1.23)),
    # Not profiled apart: attention and memory as for exact, the rest in the products.
    Tier.INT8: _Profile(182.2, 40.8, 17.0, 0.0806, _EXACT_GROWTH),
    Tier.NF4: _Profile(237.3, 40.8, 14.4, 0.0860, _EXACT_GROWTH),
}


def why_not(model: GpuModel, tier: Tier) -> str | None:
    """Why a card cannot run a tier; None if it can."""
    card = CARDS[model]
    if tier in {Tier.FP8, Tier.FP8_ATTENTION} and not card.fp8:
        return f"{card.family} has no FP8"
    if tier is Tier.FP8_ATTENTION and card.family is not Family.HOPPER:
        return f"8-bit attention was written for {Family.HOPPER}"
    if card.memory_gib * FREE < NEEDS_GIB[tier]:
        return f"{card.memory_gib:.0f} GiB; tier {tier} wants {NEEDS_GIB[tier]:g}"
    return None


def speed(model: GpuModel, tier: Tier) -> Speed:
    """By the catalogue. Only for a tier that the card can run (`why_not`)."""
    profile, card, measured = _PROFILES[tier], CARDS[model], CARDS[GpuModel.H200]
    if model is GpuModel.H200:
        step = profile.products + profile.attention + profile.memory
        return Speed(step / 1000, profile.around_s, Basis.MEASURED, "docs/bench-gpu.json", profile.growth)
    products = _products(tier, card) / profile.products
    plain = measured.bf16 / card.bf16
    attention = measured.fp8 / card.fp8 if tier is Tier.FP8_ATTENTION else plain
    memory = measured.bandwidth / card.bandwidth
    step = profile.products * products + profile.attention * attention + profile.memory * memory
    how = f"H200's profile: products x{products:.2f}, attention x{attention:.2f}, memory x{memory:.2f}"
    return Speed(step / 1000, profile.around_s * plain, Basis.DERIVED, how, profile.growth)


def _products(tier: Tier, card: Card) -> float:
    """Milliseconds of a step's products on `card`, from the H200's.

    In INT8 those are an Ampere kernel's, which a Hopper card runs at two fifths of its rate. Elsewhere it is at home,
    and taken to come as near to the card's rate as the bf16 ones do on the H200.
    """
    measured = CARDS[GpuModel.H200]
    if tier is Tier.INT8 and card.family is not Family.HOPPER:
        return _PROFILES[Tier.EXACT].products * measured.bf16 / card.int8
    return _PROFILES[tier].products * _rate(measured, tier) / _rate(card, tier)


def _rate(card: Card, tier: Tier) -> float:
    match tier:
        case Tier.EXACT | Tier.NF4:
            return card.bf16
        case Tier.FP8 | Tier.FP8_ATTENTION:
            return card.fp8
        case Tier.INT8:
            return card.int8


@dataclass(frozen=True, slots=True)
class Made:
    """What workers of one card in one tier have made: images, and the seconds that they were busy with them."""

    images: int
    busy_s: float


Fleet = Mapping[tuple[GpuModel, Tier], Made]
ENOUGH_IMAGES = 20
"""Fewer say more of chance than of the card."""


def calibrated(model: GpuModel, tier: Tier, fleet: Fleet) -> Speed:
    """The catalogue's speed, corrected by what the fleet has made itself, of whatever sizes its users ask for.

    A card with figures of its own takes them. The others are moved by the same factor (the geometric mean), or
    else a card that is there would be compared, on the users' own images, with one that is not, on the guide's.
    """
    listed = speed(model, tier)
    factors = {
        pair: (made.busy_s / made.images) / speed(*pair).seconds()
        for pair, made in fleet.items()
        if made.images >= ENOUGH_IMAGES and made.busy_s > 0 and why_not(*pair) is None
    }
    if not factors:
        return listed
    if (own := factors.get((model, tier))) is not None:
        return listed.scaled(own, Basis.FLEET, f"{fleet[model, tier].images} images of this fleet")
    factor = math.exp(sum(math.log(each) for each in factors.values()) / len(factors))
    return listed.scaled(factor, listed.basis, f"{listed.how}; x{factor:.2f} by what this fleet's other cards made")


def named(text: str, memory_gib: float = 0.0) -> GpuModel | None:
    """The card that a provider means: `NVIDIA H100 80GB HBM3`, `A100 SXM4 40G`, …; None for one that is not known.

    A text that leaves the form open means the slower one.
    """
    said = re.sub(r"[^A-Z0-9]+", " ", text.upper())
    socketed = bool(re.search(r"SXM|HBM3", said))
    found = re.search(r"\b(H200|H100|A100|L40S|(?:RTX ?)?4090)", said)
    match found and found[1]:
        case None:
            return None
        case "H200":
            card = GpuModel.H200
        case "H100":
            card = GpuModel.H100_SXM if socketed else GpuModel.H100_PCIE
            card = GpuModel.H100_NVL if "NVL" in said else card
        case "A100":
            small = bool(re.search(r"\b40 ?G", said)) or 0 < memory_gib <= 45
            large, little = (
                (GpuModel.A100_SXM_80, GpuModel.A100_SXM_40)
                if socketed
                else (GpuModel.A100_PCIE_80, GpuModel.A100_PCIE_40)
            )
            card = little if small else large
        case "L40S":
            card = GpuModel.L40S
        case _:
            card = GpuModel.RTX_4090
    return card
