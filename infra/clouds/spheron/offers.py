"""Spheron's offers as ours: one for each market and region in which something is sold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from infra.clouds import Market, Offer
from infra.clouds.spheron.api import NAME, OfferGroup
from infra.costs.gpus import named


def offers_of(group: OfferGroup) -> Iterator[Offer]:
    for each in group.offers:
        if not each.available or each.maintenance or each.instanceType == "CLUSTER" or not each.gpuCount:
            continue
        system = _operating_system(each.os_options)
        if system is None:
            continue
        text = " ".join(filter(None, (group.gpuModel, group.displayName, each.name, each.interconnectType)))
        card = named(text or group.gpuType, each.gpu_memory or 0.0)
        prices = {Market.ON_DEMAND: each.price, Market.SPOT: each.spot_price}
        if each.instanceType == "SPOT":
            prices = {Market.SPOT: each.spot_price if each.spot_price is not None else each.price}
        for market, price in prices.items():
            if not price:
                continue
            for region in each.clusters:
                where = _region(region)
                yield Offer(
                    id=f"{each.provider}/{each.offerId}/{where}/{market}",
                    cloud=NAME,
                    market=market,
                    gpu=card or group.displayName or group.gpuType,
                    gpus=each.gpuCount,
                    region=where,
                    price=price,
                    memory_gib=each.gpu_memory or 0.0,
                    minimum_s=60 * (each.minimumRuntimeMinutes or 0.0),
                    terms=(
                        ("gpuType", group.gpuType),
                        ("offerId", each.offerId),
                        ("operatingSystem", system),
                        ("provider", each.provider),
                    ),
                )


def _region(cluster: JsonValue) -> str:
    """A name, or an object that has one."""
    if isinstance(cluster, dict):
        return str(cluster.get("id") or cluster.get("name") or cluster.get("region") or "")
    return str(cluster)


def _operating_system(options: Sequence[str]) -> str | None:
    """Ubuntu, 22.04 if there is a choice, one that brings the driver before one that does not."""

    def rank(option: str) -> tuple[bool, bool, str]:
        said = option.lower()
        return ("22.04" not in said and "2204" not in said, "cuda" not in said, option)

    return min((option for option in options if "ubuntu" in option.lower()), key=rank, default=None)
