"""When an idle worker may take a job of another pool, so that nobody who comes to its own pool is harmed by it.

The bound on the harm: whoever arrives finds `idle_kept` idle workers in the pool, or waits at most `longest_s`
for one that is out on another pool's job. Values only; the choice carries it out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import Field

from router.choice import Spill
from router.contract import PoolName
from router.pace import Pace
from worker.contract import Frozen


class SpillRule(Frozen):
    """Idle workers of pool `giver` may take jobs of pool `taker`."""

    giver: PoolName
    taker: PoolName
    longest_s: float = Field(gt=0, le=3600, description="Only jobs that are predicted to take no longer.")
    idle_kept: int = Field(default=1, ge=0, description="Only while so many others of the giver's pool stay idle.")


def spills(rules: Sequence[SpillRule], pool: str, idle_others: Collection[str], pace: Pace | None) -> tuple[Spill, ...]:
    """What an idle worker of `pool` may take besides its own pool's jobs.

    `idle_others` are the pool's other workers that this process believes to be idle; the store holds that against what
    they hold by then. `pace` is the worker's pool's. Without one nothing can be predicted, and nothing is taken.
    """
    if pace is None:
        return ()
    return tuple(
        Spill(rule.taker, pace.work_within(rule.longest_s), tuple(sorted(idle_others)), rule.idle_kept)
        for rule in rules
        if rule.giver == pool and len(idle_others) >= rule.idle_kept and pace.work_within(rule.longest_s) > 0
    )
