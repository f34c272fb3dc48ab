"""The part of a stack file that describes workers: pools of machines, and endpoints that stand beside them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from infra.clouds import Market
from infra.costs.gpus import GpuModel
from infra.stack.words import Described, Device, Dollars, Port, Size, Text
from worker.contract import Tier


class Fallback(StrEnum):
    """What a spot pool does while no spot machine is to be had."""

    NONE = "none"  # waits for one
    ON_DEMAND = "on_demand"  # rents on demand meanwhile


class Scale(Described):
    """How far, and by what, `letterpress watch` changes the number of a pool's machines."""

    least: Annotated[int, Field(strict=True, ge=0, le=256)] = 0
    most: Annotated[int, Field(strict=True, ge=1, le=256)]
    wait_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="Seconds in which its machines should be through with all that waits; more rents more."
    )
    idle_s: Annotated[float, Field(ge=0)] = Field(
        900.0, description="Seconds without anything to do, after which a machine is given back."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise PydanticCustomError("scale", "should have `least` no greater than `most`")
        return self


class Pool(Described):
    """Workers of one kind of traffic."""

    machines: Annotated[int, Field(strict=True, ge=0, le=256)] = Field(description="How many machines it has.")
    market: Market = Field(Market.ON_DEMAND, description="How its machines are paid.")
    first_port: Port = Field(description="Its first worker listens here, on loopback; the next ones count up.")
    device: Device = Field(Device.AUTO, description="auto: the CPU for tiny weights, a GPU for all others.")
    tier: Tier = Field(
        Tier.EXACT,
        description="exact: the weights' own values. Faster and lossy: fp8 (Ada, Hopper), int8 (Ampere). "
        "nf4: exact and slower, in a third of the memory.",
    )
    warm_sizes: Annotated[tuple[Size, ...], Field(min_length=1)] = Field(
        ("1024x1024",), description="Made once before a worker is ready; the largest has to fit into its GPU's memory."
    )
    gpus: tuple[GpuModel, ...] = Field(
        (), description="Cards to rent, the most liked first; the cheapest image decides. Default: any that fits."
    )
    hosts: tuple[Text, ...] = Field((), description="Which of `hosts` it may have. Default: those left, in order.")
    gpus_per_machine: Annotated[int, Field(strict=True, ge=1, le=16)] = 1
    regions: tuple[Text, ...] = Field((), description="Where to rent, by the cloud's names. Default: anywhere.")
    max_price: Dollars | None = Field(None, description="US dollars an hour that one machine may cost.")
    fallback: Fallback = Field(Fallback.NONE, description="Of a spot pool: on_demand rents so while spot is sold out.")
    scale: Scale | None = Field(None, description="`machines` then says with how many it begins.")

    @property
    def most(self) -> int:
        """How many machines it may come to have."""
        return max(self.machines, self.scale.most) if self.scale else self.machines

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> Self:
        if self.scale and not self.scale.least <= self.machines <= self.scale.most:
            raise PydanticCustomError("scale", "should have `machines` within `scale`'s bounds")
        return self


class Serverless(Described):
    """An endpoint of RunPod's, beside the stack's own workers: it takes jobs itself, and costs nothing while idle."""

    image: Text = Field(description="The worker's image (docs/container.md), which runs as `serverless` there.")
    gpu_pools: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        description="RunPod's own pools of cards: AMPERE_80, ADA_80_PRO, HOPPER_141."
    )
    least: Annotated[int, Field(strict=True, ge=0, le=100)] = Field(0, description="Workers that are always there.")
    most: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    idle_s: Annotated[int, Field(strict=True, ge=1, le=3600)] = 10
    tier: Tier = Tier.EXACT
    hub_secret: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]*$")] = Field(
        "", description="The name of the RunPod secret that holds the hub's token; its value is never seen here."
    )
    volume_gb: Annotated[int, Field(strict=True, ge=10, le=4096)] = Field(60, description="Keeps the weights.")
    data_center: Text = Field(description="Where the volume is, and so the workers: EU-RO-1.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise PydanticCustomError("serverless", "should have `least` no greater than `most`")
        return self
