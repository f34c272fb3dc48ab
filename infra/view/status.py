"""What `make status` shows: one row for each thing that runs, from what the hosts and the router say.

Pure: observations in, rows out. Asking is `infra.view.observe`'s part, drawing is `infra.view.console`'s. A router
that is away takes nothing from the table but what only it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from infra.hosts import UnitState, UnitStatus
from router.contract import PoolView, WorkerHealth, WorkerView

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `good` says whether this is as it should be; `since` is UTC."""

    resource: str
    state: str
    since: datetime | None
    url: str
    pool: str
    jobs: str
    good: bool


@dataclass(frozen=True, slots=True)
class Described:
    """A unit that the stack should have. `pool` is empty for the router and the edge."""

    resource: str
    unit: str
    url: str
    pool: str = ""


@dataclass(frozen=True, slots=True)
class RouterSays:
    """The admin app's answers; None in the place of all of it when the router is away."""

    workers: Sequence[WorkerView]
    pools: Sequence[PoolView]


def rows(described: Sequence[Described], units: Mapping[str, UnitStatus], router: RouterSays | None) -> tuple[Row, ...]:
    """One row for each described unit, in their order, then workers that only the router knows."""
    views = {view.name: view for view in router.workers} if router else {}
    table = [
        _row(one, units.get(one.unit, UnitStatus(UnitState.STOPPED)), views.get(one.resource), router)
        for one in described
    ]
    known = {one.resource for one in described}
    strays = [view for name, view in views.items() if name not in known]
    return (*table, *(_stray(view) for view in strays))


def _row(one: Described, unit: UnitStatus, view: WorkerView | None, router: RouterSays | None) -> Row:
    if not one.pool:
        jobs = _waiting(router) if one.unit == "router" else NOTHING
        return Row(one.resource, unit.state, unit.since, one.url, NOTHING, jobs, unit.state is UnitState.RUNNING)
    if unit.state is not UnitState.RUNNING:
        return Row(one.resource, unit.state, unit.since, one.url, one.pool, _jobs(view), good=False)
    if view is None:
        state = "running, router away" if router is None else "running, not registered"
        return Row(one.resource, state, unit.since, one.url, one.pool, NOTHING, good=False)
    return Row(
        one.resource, _health(view), view.since, one.url, one.pool, _jobs(view), view.health is WorkerHealth.READY
    )


def _stray(view: WorkerView) -> Row:
    state = f"{_health(view)}, not described"
    return Row(view.name, state, view.since, view.url, view.pool, _jobs(view), good=False)


def _health(view: WorkerView) -> str:
    return f"{view.health}: {view.reason}" if view.reason and view.health is not WorkerHealth.READY else view.health


def _jobs(view: WorkerView | None) -> str:
    return f"{view.running} running, {view.finished} done" if view else NOTHING


def _waiting(router: RouterSays | None) -> str:
    if router is None:
        return NOTHING
    queued, running = sum(pool.queued for pool in router.pools), sum(pool.running for pool in router.pools)
    return f"{queued} queued, {running} running"
