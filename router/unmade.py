"""Ends jobs of batches that no worker can make, once that has been so for a while: their batch is to end with the
others, and nobody is on the line for them who would give them up. The batch's error file says why.

Who could make them is the fleet's to say. A job by itself waits for its worker as long as its owner lets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from router.choice import Lane
from router.contract.names import UNMAKEABLE
from router.fleet import Fleet
from router.jobs import JobError
from router.notices import Notices
from router.spill import SpillRule
from router.store import Store

log = structlog.get_logger(__name__)

HELD_S = 300.0
"""So long it has to be so without a break: a machine that is replaced is away for some minutes."""
EVERY_S = 10.0
AT_ONCE = 500
"""Jobs that end in one transaction: it must not keep the others from writing for long."""


class Unmade:
    """Since when nobody can make what waits, as far as this process has seen it."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        rules: Sequence[SpillRule],
        notices: Notices,
        monotonic: Callable[[], float],
    ) -> None:
        self._store, self._fleet, self._rules, self._notices = store, fleet, rules, notices
        self._monotonic = monotonic
        self._since: dict[_Want, float] = {}

    async def keep_looking(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Once. Raises StoreUnavailableError."""
        now, before = self._monotonic(), self._since
        self._since = {}
        for pool in sorted({view.pool for view in self._fleet.views()}):
            vain = await self._vain(pool)
            if not vain or await self._store.pool_expected(pool):
                continue
            self._since |= {want: before.get(want, now) for want in vain.values()}
            for lane, want in vain.items():
                if now - self._since[want] >= HELD_S:
                    await self._give_up(lane, want)

    async def _vain(self, pool: str) -> Mapping[Lane, _Want]:
        """The lanes that hold, or could hold, what nobody can make: no worker of the pool, and none that helps it
        out."""
        pools, found = (pool, *(rule.giver for rule in self._rules if rule.taker == pool)), dict[Lane, _Want]()
        for lane in await self._store.lanes(pool):
            most = max(self._fleet.largest(one, lane.tier, lane.model) for one in pools)
            over, up_to = lane.pixels
            if most < up_to:
                found[lane] = _Want(pool, lane.pixel_class, lane.tier, lane.model, max(most, over))
        return found

    async def _give_up(self, lane: Lane, want: _Want) -> None:
        error = JobError(UNMAKEABLE, _why(want))
        while ended := await self._store.give_up(want.pool, lane, want.over, error, AT_ONCE):
            log.warning("unmakeable", pool=want.pool, jobs=len(ended), why=error.detail)
            for job in ended:
                self._notices.publish(job)


@dataclass(frozen=True, slots=True)
class _Want:
    """What nobody can make: images of the lanes of this class that have more pixels than `over`, whoever asks for them
    and however long they take. What workers can make of a class may change, and then it is another want."""

    pool: str
    pixel_class: int
    tier: str
    model: str
    over: int


def _why(want: _Want) -> str:
    terms = [f"{name} {value}" for name, value in (("tier", want.tier), ("model", want.model)) if value]
    wanted = "images of its size" + (f" with {', '.join(terms)}" if terms else "")
    return f"pool {want.pool}: no worker there could make {wanted} for {HELD_S / 60:.0f} minutes"
