"""What watch decides: rule by rule, and by simulation of clouds that take machines back whenever they like."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.clouds import Market, Offer, Presence
from infra.costs.choice import Considered, Judge, Wish
from infra.costs.gpus import GpuModel
from infra.planning.placement import Placed, Placement, pool_of, wishes
from infra.stack import StackDescription
from infra.watch.decide import SILENT_S, SPOT_STAYS_S, Decision, Deed, Memory, PoolSeen, Seen, World, decide
from infra.watch.work import pause_after

HOUR = 3600.0
NOW = 1_800_000_000.0


def offer(gpu: GpuModel, price: float, market: Market = Market.ON_DEMAND, minimum_s: float = 0.0) -> Offer:
    return Offer(f"{gpu}/{market}", "spheron", market, gpu, 1, "us", price, 80.0, minimum_s)


H100 = offer(GpuModel.H100_PCIE, 2.01)
SPOT, DEAR = offer(GpuModel.A100_SXM_80, 0.82, Market.SPOT), offer(GpuModel.A100_SXM_80, 1.69)


def stack(budget: float | None = None, hours: float | None = None, **batch: object) -> StackDescription:
    pools = {
        "interactive": {"machines": 1, "gpus": ["H100-PCIe"], "first_port": 9000},
        "batch": {
            "machines": 0,
            "market": "spot",
            "fallback": "on_demand",
            "gpus": ["A100-SXM-80GB"],
            "first_port": 9100,
        }
        | batch,
    }
    return StackDescription.model_validate(
        {
            "name": "s",
            "cloud": "spheron",
            "model": "owner/name",
            "pools": pools,
            "budget_per_hour": budget,
            "lives_for_hours": hours,
        }
    )


SCALE = {"least": 0, "most": 4, "wait_s": 600, "idle_s": 900}


@cache
def considered(offers: tuple[Offer, ...], wish: Wish) -> tuple[Considered, ...]:
    return Judge().consider(offers, wish)


def world(
    description: StackDescription, machines: list[Seen], offers: list[Offer], queued: int = 0, now: float = NOW
) -> World:
    pools = []
    for name, pool in description.pools.items():
        own, *instead = (considered(tuple(offers), wish) for wish in wishes(pool))
        mine = tuple(each for each in machines if pool_of(each.placed.machine) == name)
        waiting = queued if name == "batch" else 0
        pools.append(PoolSeen(name, mine, waiting, own, tuple(one for each in instead for one in each)))
    return World(now, Placement(tuple(each.placed for each in machines)), tuple(pools))


def there(machine: str, of: Offer, age_s: float = HOUR, idle_s: float = 0.0) -> Seen:
    return Seen(Placed(machine, of), Presence.THERE, age_s, idle_s)


def gone(machine: str, of: Offer) -> Seen:
    return Seen(Placed(machine, of), Presence.GONE, reason="taken back by Spheron")


def deeds(decision: Decision) -> list[tuple[Deed, str]]:
    return [(action.deed, action.machine) for action in decision.actions]


FRONT = there("interactive-1", H100)
ALL = [H100, SPOT, DEAR]


def test_nothing_happens_where_all_is_well() -> None:
    seen = world(stack(machines=1), [FRONT, there("batch-1", SPOT)], ALL)
    assert decide(stack(machines=1), seen).actions == ()
    assert decide(stack(machines=1), seen).placement == seen.placement


def test_a_lost_spot_machine_is_replaced_by_spot_under_a_new_name() -> None:
    decision = decide(stack(machines=1), world(stack(machines=1), [FRONT, gone("batch-1", SPOT)], ALL))
    assert deeds(decision) == [(Deed.REPLACE, "batch-1")]
    placed = decision.placement.of("batch-1")
    assert placed is not None
    assert (placed.offer, placed.generation) == (SPOT, 2)
    assert "taken back by Spheron; takes A100-SXM-80GB (spot, us, $0.82/h)" in decision.actions[0].why


def silent(machine: str, of: Offer, seconds: float, age_s: float = HOUR) -> Seen:
    return replace(there(machine, of, age_s), silent_since=NOW - seconds)


HEARD = replace(FRONT, greets=True)
PAID = replace(SPOT, minimum_s=1200.0)


def test_a_machine_that_answers_nobody_is_told_at_once_and_replaced_once_that_has_lasted() -> None:
    one = stack(machines=1)

    def after(seconds: float, front: Seen) -> Decision:
        return decide(one, world(one, [front, silent("batch-1", SPOT, seconds)], ALL))

    early = after(SILENT_S - 1, HEARD)
    assert deeds(early) == [(Deed.HOLD, "batch-1")]
    assert early.placement.of("batch-1") == Placed("batch-1", SPOT)
    late = after(SILENT_S, HEARD)
    assert deeds(late) == [(Deed.REPLACE, "batch-1")]
    assert late.placement.of("batch-1") == Placed("batch-1", SPOT, 2)
    alone = after(100 * SILENT_S, FRONT)
    assert deeds(alone) == [(Deed.HOLD, "batch-1")], "where nothing answers, the way there may be what is broken"
    assert "the fault may be here" in alone.actions[0].why


def test_a_machine_that_answers_nobody_and_is_paid_for_still_is_kept_to_the_end_of_that() -> None:
    one = stack(machines=1)

    def aged(age_s: float) -> Decision:
        return decide(one, world(one, [HEARD, silent("batch-1", PAID, 300, age_s)], ALL))

    held = aged(1199.0)
    assert deeds(held) == [(Deed.HOLD, "batch-1")]
    until = datetime.fromtimestamp(NOW + 1, UTC)
    assert f"it is paid for until {until:%H:%M:%S} UTC in any case" in held.actions[0].why
    assert deeds(aged(1200.0)) == [(Deed.REPLACE, "batch-1")]


def test_a_pool_that_scales_does_not_wait_for_that_but_for_its_bound_and_the_budget() -> None:
    def decided(scaled: StackDescription, *machines: Seen, queued: int = 1) -> Decision:
        return decide(scaled, world(scaled, [HEARD, *machines], ALL, queued=queued))

    scaled, hangs = stack(scale=SCALE), silent("batch-1", PAID, 300, 600)
    instead = decided(scaled, hangs)
    assert deeds(instead) == [(Deed.HOLD, "batch-1"), (Deed.GROW, "batch-2")]
    assert deeds(decided(scaled, hangs, there("batch-2", SPOT))) == [(Deed.HOLD, "batch-1")], "one is enough"
    assert deeds(decided(scaled, hangs, queued=0)) == [(Deed.HOLD, "batch-1")], "nothing waits"
    assert deeds(decided(stack(scale=SCALE | {"most": 1}), hangs)) == [(Deed.HOLD, "batch-1")]
    assert deeds(decided(stack(budget=3.0, scale=SCALE), hangs)) == [(Deed.HOLD, "batch-1"), (Deed.HOLD, "batch-2")]

    over = decided(scaled, silent("batch-1", PAID, 900, 1200), there("batch-2", SPOT))
    assert deeds(over) == [(Deed.SHRINK, "batch-1")], "and then nobody takes its place"
    assert "and is not needed now" in over.actions[0].why

    idle = [replace(silent("batch-1", PAID, 900, 1200), idle_s=1000), there("batch-2", SPOT, idle_s=1000)]
    assert deeds(decided(scaled, *idle, queued=0)) == [(Deed.SHRINK, "batch-1"), (Deed.SHRINK, "batch-2")], "once each"


def test_where_another_takes_its_place_that_one_is_not_given_back_as_idle() -> None:
    scaled = stack(machines=1, scale=SCALE | {"least": 1})
    machines = [HEARD, silent("batch-1", PAID, 300, 600), there("batch-2", SPOT, idle_s=5000)]
    assert deeds(decide(scaled, world(scaled, machines, ALL))) == [(Deed.HOLD, "batch-1")]


def test_while_spot_is_sold_out_it_rents_on_demand_if_the_pool_says_so_and_else_waits() -> None:
    lost = [FRONT, gone("batch-1", SPOT)]
    willing, strict = stack(machines=1), stack(machines=1, fallback="none")
    placed = decide(willing, world(willing, lost, [H100, DEAR])).placement.of("batch-1")
    assert placed is not None
    assert placed.offer is DEAR
    held = decide(strict, world(strict, lost, [H100, DEAR]))
    assert deeds(held) == [(Deed.HOLD, "batch-1")]
    assert held.actions[0].why == "taken back by Spheron; no offer suits its pool now"


def test_a_whole_pool_that_is_lost_at_once_is_replaced_at_once() -> None:
    four = stack(machines=4)
    lost = [FRONT, *(gone(f"batch-{n}", SPOT) for n in range(1, 5))]
    assert deeds(decide(four, world(four, lost, ALL))) == [(Deed.REPLACE, f"batch-{n}") for n in range(1, 5)]


def test_what_the_cloud_does_not_say_changes_nothing() -> None:
    one = stack(machines=1, scale=SCALE)
    unknown = Seen(Placed("batch-1", SPOT), Presence.UNKNOWN)
    assert decide(one, world(one, [FRONT, unknown], ALL)).actions == ()


def test_it_returns_to_spot_when_that_has_stayed_and_pays_one_machine_a_round() -> None:
    two = stack(machines=2)
    seen = world(two, [FRONT, there("batch-1", DEAR), there("batch-2", DEAR)], ALL)
    first = decide(two, seen)
    assert first.actions == ()
    early = decide(two, replace(seen, now=NOW + SPOT_STAYS_S - 1), first.memory)
    assert early.actions == ()
    then = decide(two, replace(seen, now=NOW + SPOT_STAYS_S), early.memory)
    assert deeds(then) == [(Deed.RETURN, "batch-1")]


def test_spot_that_comes_and_goes_is_not_followed() -> None:
    one = stack(machines=1)
    seen = world(one, [FRONT, there("batch-1", DEAR)], ALL)
    away = world(one, [FRONT, there("batch-1", DEAR)], [H100, DEAR])
    memory = Memory()
    for minute in range(0, 120, 10):
        decision = decide(one, replace(seen if minute % 20 else away, now=NOW + 60 * minute), memory)
        assert decision.actions == ()
        memory = decision.memory


def test_spot_that_does_not_pay_is_left_alone() -> None:
    one = stack(machines=1)
    seen = world(one, [FRONT, there("batch-1", DEAR)], [H100, replace(SPOT, price=1.60), DEAR])
    decision = decide(one, replace(seen, now=NOW + 2 * SPOT_STAYS_S), Memory({"batch": NOW}))
    assert decision.actions == ()


def test_the_backlog_is_followed_up_to_the_bound_and_down_to_zero() -> None:
    scaled = stack(scale=SCALE)
    assert deeds(decide(scaled, world(scaled, [FRONT], ALL, queued=1))) == [(Deed.GROW, "batch-1")]
    flood = decide(scaled, world(scaled, [FRONT], ALL, queued=100_000))
    assert deeds(flood) == [(Deed.GROW, f"batch-{n}") for n in range(1, 5)]
    assert dict(flood.placement.numbers) == {"batch": 4}
    idle = [FRONT, *(there(f"batch-{n}", SPOT, idle_s=1000) for n in (1, 2))]
    drained = decide(scaled, world(scaled, idle, ALL))
    assert deeds(drained) == [(Deed.SHRINK, "batch-1"), (Deed.SHRINK, "batch-2")]
    assert dict(drained.placement.numbers) == {"batch": 0}


def test_a_machine_is_not_given_back_while_it_works_or_is_paid_for_anyway() -> None:
    scaled = stack(scale=SCALE)
    minimum = replace(SPOT, minimum_s=1200.0)
    machines = [FRONT, there("batch-1", SPOT, idle_s=0.0), there("batch-2", minimum, age_s=1100.0, idle_s=1000.0)]
    assert decide(scaled, world(scaled, machines, ALL)).actions == ()


def test_a_machine_that_is_lost_and_not_needed_is_not_rented_again() -> None:
    scaled = stack(scale=SCALE)
    decision = decide(scaled, world(scaled, [FRONT, gone("batch-1", SPOT), there("batch-2", SPOT)], ALL, queued=5))
    assert deeds(decision) == [(Deed.SHRINK, "batch-1")]
    assert [placed.machine for placed in decision.placement.machines] == ["interactive-1", "batch-2"]


def test_a_router_that_does_not_say_what_waits_neither_grows_nor_shrinks_anything() -> None:
    scaled = stack(scale=SCALE)
    seen = world(scaled, [FRONT, there("batch-1", SPOT, idle_s=9999)], ALL)
    silent = replace(seen, pools=tuple(replace(pool, queued=None) for pool in seen.pools))
    assert decide(scaled, silent).actions == ()


def test_the_budget_holds_back_and_says_so() -> None:
    poor = stack(budget=3.0, scale=SCALE)
    decision = decide(poor, world(poor, [FRONT], ALL, queued=100_000))
    assert deeds(decision) == [(Deed.GROW, "batch-1"), (Deed.HOLD, "batch-2")]
    assert (
        "$2.83 an hour are spent, and the least that is offered ($0.82) exceeds the budget" in decision.actions[1].why
    )


def test_a_stack_whose_time_is_over_ends() -> None:
    short = stack(hours=2, machines=1)
    seen = replace(world(short, [FRONT, there("batch-1", SPOT)], ALL), ends_at=NOW)
    assert decide(short, seen).ends
    assert not decide(short, replace(seen, now=NOW - 1)).ends


def given_up(seen: Seen) -> bool:
    """Gone, or silent for long enough and paid for no more."""
    hangs = seen.silent_since is not None and seen.age_s >= max(SILENT_S, seen.placed.offer.minimum_s)
    return seen.presence is Presence.GONE or hangs


@dataclass
class Simulation:
    """A cloud that takes spot machines back, sells out, and a backlog that comes and goes: what is paid is counted."""

    description: StackDescription
    dice: random.Random
    loss: float
    hangs: float = 0.0
    now: float = NOW
    placement: Placement = field(default_factory=Placement)
    born: dict[tuple[str, int], float] = field(default_factory=dict)
    lost: set[tuple[str, int]] = field(default_factory=set)
    silent: dict[tuple[str, int], float] = field(default_factory=dict)
    idle_since: dict[str, float] = field(default_factory=dict)
    queued: int = 0
    memory: Memory = field(default_factory=Memory)

    def tick(self, seconds: float, arrivals: int, offers: list[Offer]) -> Decision:
        self.now += seconds
        machines = []
        for placed in self.placement.machines:
            key = (placed.machine, placed.generation)
            if placed.offer.market is Market.SPOT and self.dice.random() < self.loss:
                self.lost.add(key)
            if key in self.lost:
                machines.append(Seen(placed, Presence.GONE, reason="taken back"))
                continue
            idle = self.now - self.idle_since.setdefault(placed.machine, self.now)
            if placed.machine != "interactive-1" and self.dice.random() < self.hangs:
                self.silent.setdefault(key, self.now)
            since, age = self.silent.get(key), self.now - self.born[key]
            one = Seen(placed, Presence.THERE, age, 0.0 if self.queued else idle, silent_since=since)
            machines.append(replace(one, greets=since is None))
        alive = sum(each.greets and each.placed.machine != "interactive-1" for each in machines)
        self.queued = max(0, self.queued + arrivals - int(alive * seconds / 2))
        if self.queued:
            self.idle_since.clear()
        seen = replace(world(self.description, machines, offers, self.queued, self.now), placement=self.placement)
        decision = decide(self.description, seen, self.memory)
        self._check(seen, decision)
        self.placement, self.memory = decision.placement, decision.memory
        for placed in self.placement.machines:
            self.born.setdefault((placed.machine, placed.generation), self.now)
        return decision

    def _check(self, seen: World, decision: Decision) -> None:
        before = {each.placed.machine: each for pool in seen.pools for each in pool.machines}
        budget = self.description.budget_per_hour
        spent = sum(placed.offer.price for placed in decision.placement.machines)
        was = sum(placed.offer.price for placed in self.placement.machines)
        assert budget is None or spent <= max(budget, was) + 1e-6
        batch = [placed for placed in decision.placement.machines if pool_of(placed.machine) == "batch"]
        assert len(batch) <= 4
        assert dict(decision.placement.numbers)["batch"] == len(batch)
        names = [placed.machine for placed in decision.placement.machines]
        assert len(names) == len(set(names))
        for placed in decision.placement.machines:
            old = before.get(placed.machine)
            if old and old.placed != placed:
                assert placed.generation > old.placed.generation, "a successor is never mistaken for what it replaces"
        for action in decision.actions:
            old = before.get(action.machine)
            if action.deed is Deed.SHRINK:
                assert old is not None
                assert given_up(old) or (old.spared and not self.queued)
            if action.deed is Deed.REPLACE:
                assert old is not None
                assert given_up(old)
            assert action.why
        held = {action.machine for action in decision.actions if action.deed is Deed.HOLD}
        kept = {(placed.machine, placed.generation) for placed in decision.placement.machines}
        for machine, old in before.items():
            if old.presence is Presence.GONE and machine not in held:
                assert (machine, old.placed.generation) not in kept, "what is lost is replaced in the same round"


@settings(max_examples=200)
@given(
    st.integers(0, 2**32),
    st.floats(0.0, 0.4),
    st.floats(0.0, 0.2),
    st.one_of(st.none(), st.floats(2.9, 9.0)),
    st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from([(), (SPOT,), (PAID,), (DEAR,), (SPOT, DEAR)])), max_size=20
    ),
)
def test_whatever_a_cloud_does_the_rules_hold_and_a_quiet_pool_ends_at_nothing(
    seed: int, loss: float, hangs: float, budget: float | None, story: list[tuple[int, tuple[Offer, ...]]]
) -> None:
    description, front = stack(budget=budget, scale=SCALE), Placement((Placed("interactive-1", H100),))
    run = Simulation(description, random.Random(seed), loss, hangs, placement=front)
    run.born["interactive-1", 1] = NOW
    for arrivals, sold in story:
        run.tick(60.0, arrivals, [H100, *sold])
    run.loss = run.hangs = 0.0
    for _ in range(120):
        run.tick(60.0, 0, ALL)
        if not run.queued and len(run.placement.machines) == 1:
            break
    assert [placed.machine for placed in run.placement.machines] == ["interactive-1"]
    assert run.tick(60.0, 0, ALL).actions == ()


def test_changing_over_is_rare_where_spot_flickers() -> None:
    description = stack(machines=2)
    run = Simulation(description, random.Random(7), 0.0)
    run.placement = Placement((Placed("interactive-1", H100), Placed("batch-1", SPOT), Placed("batch-2", SPOT)))
    run.born = {("interactive-1", 1): NOW, ("batch-1", 1): NOW, ("batch-2", 1): NOW}
    returns = 0
    for _ in range(12 * 60):
        run.loss = 0.01
        sold = ALL if run.dice.random() < 0.7 else [H100, DEAR]  # gone every third minute
        decision = _unscaled(run, sold)
        returns += sum(action.deed is Deed.RETURN for action in decision.actions)
    assert returns <= 12 * 4, "no oftener than once a cold start"


def _unscaled(run: Simulation, sold: list[Offer]) -> Decision:
    run.now += 60
    machines = []
    for placed in run.placement.machines:
        key = (placed.machine, placed.generation)
        if placed.offer.market is Market.SPOT and run.dice.random() < run.loss:
            run.lost.add(key)
        presence = Presence.GONE if key in run.lost else Presence.THERE
        machines.append(Seen(placed, presence, run.now - run.born.setdefault(key, run.now)))
    decision = decide(run.description, world(run.description, machines, sold, 0, run.now), run.memory)
    run.placement, run.memory = decision.placement, decision.memory
    return decision


def test_the_pause_between_failures_grows_from_nothing_to_a_quarter_of_an_hour() -> None:
    assert [pause_after(failures) for failures in range(9)] == [0, 0, 0, 30, 60, 120, 240, 480, 900]
    assert pause_after(1000) == 900
