"""What a cloud's offers cost just before something is ordered: asked once for all machines of a deploy."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infra.clouds import Cloud, CloudError, Offer

FRESH_S = 60.0
"""Prices move by the day; an order that waits for its provider's limit waits for minutes, and asks anew."""


@dataclass(slots=True)
class Prices:
    """By cloud, since when and what it said. `clock` is in seconds."""

    clock: Callable[[], float] = time.monotonic
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _said: dict[str, tuple[float, Sequence[Offer] | CloudError]] = field(default_factory=dict)

    async def of(self, cloud: Cloud, offer: str) -> Offer | None:
        """The offer as it was not longer than `FRESH_S` ago; None if it was not listed.

        Raises CloudError if there is no answer (the question itself is repeated by the cloud's own rules): for all
        that waited for that one, while who comes later asks again.
        """
        came = self.clock()
        async with self._asking:
            at, said = self._said.get(cloud.name, (-math.inf, ()))
            if at <= came if isinstance(said, CloudError) else self.clock() - at >= FRESH_S:
                said = await _asked(cloud)
                self._said[cloud.name] = self.clock(), said
        if isinstance(said, CloudError):
            raise said
        return next((each for each in said if each.id == offer), None)


async def _asked(cloud: Cloud) -> Sequence[Offer] | CloudError:
    try:
        return await cloud.offers()
    except CloudError as error:
        return error
