"""Ends jobs of batches that no worker can make, once that has been so for a while: their batch is to end with the
others, and nobody is on the line for them who would give them up. The batch's error file says why.

Who could make them is the fleet's to say. A job by itself waits for its worker as long as its owner lets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

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
    """Since when each lane of each pool has been in vain, as far as this process has seen it."""

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
        self._since: dict[tuple[str, Lane], float] = {}

    async def keep_looking(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Once. Raises StoreUnavailableError."""
        now, before = self._monotonic(), self._since
        self._since = {}
        for pool in sorted({view.pool for view in self._fleet.views()}):
            vain = [lane for lane in await self._store.lanes(pool) if not self._possible(pool, lane)]
            if not vain or await self._store.pool_expected(pool):
                continue
            wants = {(pool, _want(lane)) for lane in vain}
            self._since |= {want: before.get(want, now) for want in wants}
            over = [lane for lane in vain if now - self._since[pool, _want(lane)] >= HELD_S]
            await self._give_up(pool, over)

    def _possible(self, pool: str, lane: Lane) -> bool:
        """Whether somebody may make it: a worker of the pool, or one that helps it out. Those that have not said yet
        what they can, may."""
        givers = (rule.giver for rule in self._rules if rule.taker == pool)
        return any(self._fleet.could_make(one, lane) for one in (pool, *givers))

    async def _give_up(self, pool: str, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            error = JobError(UNMAKEABLE, _why(pool, lane))
            while ended := await self._store.give_up(pool, lane, error, AT_ONCE):
                log.warning("unmakeable", pool=pool, jobs=len(ended), why=error.detail)
                for job in ended:
                    self._notices.publish(job)


def _want(lane: Lane) -> Lane:
    """What it wants of a worker, whoever asks for it and however long it takes."""
    return replace(lane, api_key_id="", work_class=0)


def _why(pool: str, lane: Lane) -> str:
    terms = [f"{name} {value}" for name, value in (("tier", lane.tier), ("model", lane.model)) if value]
    wanted = "images of its size" + (f" with {', '.join(terms)}" if terms else "")
    return f"pool {pool}: no worker there could make {wanted} for {HELD_S / 60:.0f} minutes"
