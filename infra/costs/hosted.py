"""What others ask and say: the hosted API's prices, and the published guide's table beside what arithmetic allows.

Figures of others, with their day; ours are `infra.costs.gpus`'.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.costs.choice import Workload
from infra.costs.gpus import CARDS, GpuModel, speed, why_not
from worker.contract import Tier

FLOP_PER_IMAGE = 4.1e15
"""Of 25 steps at 1024x1024 with both branches: what no software can do without."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """One rendering speed of the hosted API: US dollars an image, and the preset's steps."""

    name: str
    dollars: float
    steps: int

    def workload(self, pixels: int) -> Workload:
        return Workload(self.steps, pixels)


HOSTED = (Hosted("Turbo", 0.03, 12), Hosted("Default", 0.06, 20), Hosted("Quality", 0.10, 48))


@dataclass(frozen=True, slots=True)
class Published:
    """A line of the guide of June 2026: images a minute alone and four at a time, dollars per 100 images."""

    gpu: GpuModel
    precision: str
    alone: float
    batched: float
    on_demand: float
    spot: float | None
    tier: Tier

    @property
    def bound(self) -> float:
        """Images a minute that the card's dense peak allows in this precision, or in its own 8-bit one."""
        card = CARDS[self.gpu]
        peak = card.bf16 if self.precision == "FP16" else card.fp8 or card.int8
        return peak * 1e12 / FLOP_PER_IMAGE * 60

    @property
    def ours(self) -> float | None:
        """Images a minute by our catalogue, in the tier that comes nearest; None if that does not fit the card."""
        return None if why_not(self.gpu, self.tier) else 60 / speed(self.gpu, self.tier).seconds()

    @property
    def reason(self) -> str:
        """Why the published figure cannot be."""
        said = [f"the card's peak allows {self.bound:.0f} a minute"]
        if self.precision == "FP8" and not CARDS[self.gpu].fp8:
            said.append(f"{CARDS[self.gpu].family} has no FP8; counted as INT8")
        said.append("a batch of four gains 3 to 5 % here, for the work is compute-bound")
        if problem := why_not(self.gpu, self.tier):
            said.append(f"tier {self.tier}: {problem}")
        return "; ".join(said)


PUBLISHED = (
    Published(GpuModel.H100_SXM, "FP8", 50, 135, 0.13, 0.10, Tier.FP8),
    Published(GpuModel.H100_PCIE, "FP8", 40, 105, 0.08, None, Tier.FP8),
    Published(GpuModel.A100_SXM_80, "FP8", 22, 58, 0.13, 0.06, Tier.INT8),
    Published(GpuModel.A100_PCIE_80, "FP8", 20, 52, 0.12, 0.10, Tier.INT8),
    Published(GpuModel.A100_SXM_40, "FP16", 18, 45, 0.15, None, Tier.EXACT),
)
