"""Which image sizes the open weights can draw, and which of them is nearest to one that they cannot.

Any two multiples of 16 from 256 to 2048 within 6:1. The hosted API has a list of its own, and part of that
list is beyond these weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import log
from typing import NamedTuple

from worker.contract import MAX_ASPECT, MAX_SIDE, MIN_SIDE, SIDE_STEP


class Size(NamedTuple):
    """In pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def drawable(self) -> bool:
        """Whether the open weights were made for it."""
        return all(MIN_SIDE <= side <= MAX_SIDE and side % SIDE_STEP == 0 for side in self) and max(
            self
        ) <= MAX_ASPECT * min(self)


def _both_ways(sizes: Iterable[tuple[int, int]]) -> tuple[Size, ...]:
    """Each upright and lying; a square once."""
    return tuple(dict.fromkeys(Size(*way) for size in sizes for way in (size, size[::-1])))


HOSTED_1K = _both_ways(
    [(1024, 1024), (896, 1120), (864, 1152), (832, 1248), (800, 1280), (720, 1280), (720, 1440), (512, 1536)]
)
HOSTED_2K = _both_ways(
    [
        *((2048, 2048), (1440, 2880), (1664, 2496), (1792, 2240), (1440, 2560), (1600, 2560), (1728, 2304)),
        *((1296, 3168), (1152, 2944), (1248, 3328), (1280, 3072), (1024, 3072)),
    ]
)
"""What the hosted API's v4 offers, as it is published."""
OFFICIAL = tuple(size for size in (*HOSTED_1K, *HOSTED_2K) if size.drawable)
"""Those of them that the open weights draw too."""


def nearest(width: int, height: int, among: Iterable[Size] | None = None) -> Size:
    """The drawable size nearest to `width` x `height` (positive), or the nearest of `among`.

    Without `among` the shape is kept as far as 6:1 allows, and so is the area as far as the bounds do; then both
    sides are rounded to the grid. Near is meant by ratio: 256 is as far from 512 as 512 is from 1024.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width, height: {width}x{height} is no size")
    if among is not None:
        return min(among, key=lambda size: _distance(size, width, height))
    wide, high = _bounded(width, height)
    sides = [[int(side // SIDE_STEP) * SIDE_STEP, -int(-side // SIDE_STEP) * SIDE_STEP] for side in (wide, high)]
    around = (Size(*pair) for pair in product(*sides))
    return min((size for size in around if size.drawable), key=lambda size: _distance(size, wide, high))


def _bounded(width: float, height: float) -> tuple[float, float]:
    """The same shape within the bounds, before the grid; what is longer than 6:1 gets a longer short side."""
    longest = max(width, height)
    width, height = max(width, longest / MAX_ASPECT), max(height, longest / MAX_ASPECT)
    scale = min(1.0, MAX_SIDE / longest)
    scale = max(scale, MIN_SIDE / min(width, height))
    # Rounding may have put a side a hair outside.
    return min(max(width * scale, MIN_SIDE), MAX_SIDE), min(max(height * scale, MIN_SIDE), MAX_SIDE)


def _distance(size: Size, width: float, height: float) -> float:
    return log(size.width / width) ** 2 + log(size.height / height) ** 2
