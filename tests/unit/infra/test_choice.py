"""Which rented offer a machine takes, and why not another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clouds import Market, Offer
from infra.costs.charges import charges, pool_plans
from infra.costs.choice import Judge, Wish
from infra.costs.gpus import GpuModel, Made, speed
from infra.planning.placement import Placement, PlacementError, count, place, wishes
from infra.stack import StackDescription
from worker.contract import Tier


def offer(gpu: str, price: float, market: Market = Market.ON_DEMAND, region: str = "us", gpus: int = 1) -> Offer:
    return Offer(f"{gpu}/{region}/{market}/{gpus}", "spheron", market, gpu, gpus, region, price, 80.0)


SXM, PCIE = offer(GpuModel.H100_SXM, 3.98), offer(GpuModel.H100_PCIE, 2.01)
SPOT, WARM = offer(GpuModel.A100_SXM_80, 0.82, Market.SPOT), offer(GpuModel.A100_SXM_80, 1.69)
OFFERS = (SXM, PCIE, SPOT, WARM)


def described(budget: float | None = None, **pools: dict[str, object]) -> StackDescription:
    named = {name: {"first_port": 9000 + 100 * i} | pool for i, (name, pool) in enumerate(pools.items())}
    stack = {"name": "s", "cloud": "spheron", "model": "owner/name", "pools": named, "budget_per_hour": budget}
    return StackDescription.model_validate(stack)


def placed(placement: Placement) -> dict[str, str]:
    return {each.machine: each.offer.id for each in placement.machines}


def test_the_cheapest_image_wins_and_not_the_cheapest_hour() -> None:
    dear_and_fast, cheap_and_slow = offer(GpuModel.H100_SXM, 2.0), offer(GpuModel.A100_SXM_80, 1.0)
    best, second = Judge().consider([cheap_and_slow, dear_and_fast], Wish(Market.ON_DEMAND, Tier.EXACT))
    assert best.offer is dear_and_fast
    assert best.dollars_per_image < second.dollars_per_image
    assert best.dollars_per_image == pytest.approx(2.0 / 3600 * speed(GpuModel.H100_SXM, Tier.EXACT).seconds())


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(Market.SPOT, Tier.EXACT), "on_demand; the pool wants spot"),
        (Wish(Market.ON_DEMAND, Tier.EXACT, (GpuModel.H200,)), "not in the pool's `gpus`"),
        (Wish(Market.ON_DEMAND, Tier.EXACT, regions=("eu",)), "us is not in the pool's `regions`"),
        (Wish(Market.ON_DEMAND, Tier.EXACT, gpus_per_machine=2), "1 GPUs; the pool wants 2 a machine"),
        (Wish(Market.ON_DEMAND, Tier.EXACT, max_price=1.0), "$1.69/h is above `max_price`"),
        (Wish(Market.ON_DEMAND, Tier.FP8), "Ampere has no FP8"),
    ],
)
def test_a_refused_offer_says_why(wish: Wish, said: str) -> None:
    (one,) = Judge().consider([WARM], wish)
    assert one.refused == said


def test_a_card_that_nobody_knows_is_refused_by_its_name() -> None:
    (one,) = Judge().consider([offer("B300", 9.0)], Wish(Market.ON_DEMAND, Tier.EXACT))
    assert one.refused == "B300 is not in the catalogue"


def test_what_the_fleet_has_made_turns_the_choice() -> None:
    wish = Wish(Market.ON_DEMAND, Tier.FP8)
    slow = {(GpuModel.H100_PCIE, Tier.FP8): Made(200, 200 * 60.0), (GpuModel.H100_SXM, Tier.FP8): Made(200, 200 * 4.0)}
    assert Judge().consider(OFFERS, wish)[0].offer is PCIE
    assert Judge(slow).consider(OFFERS, wish)[0].offer is SXM


def test_a_spot_pool_takes_spot_and_without_it_what_it_says_instead() -> None:
    stack = described(batch={"machines": 2, "market": "spot", "fallback": "on_demand", "gpus": ["A100-SXM-80GB"]})
    assert placed(place(stack, OFFERS, Placement())) == {"batch-1": SPOT.id, "batch-2": SPOT.id}
    assert placed(place(stack, [WARM], Placement())) == {"batch-1": WARM.id, "batch-2": WARM.id}
    strict = described(batch={"machines": 1, "market": "spot", "gpus": ["A100-SXM-80GB"]})
    with pytest.raises(PlacementError, match=r"no offer of spheron suits batch-1.*1 x on_demand; the pool wants spot"):
        place(strict, [WARM], Placement())


def test_a_machine_that_runs_keeps_its_offer_though_nobody_else_can_rent_it_any_more() -> None:
    stack = described(a={"machines": 2, "tier": "fp8"})
    before = place(stack, [PCIE], Placement())
    after = place(stack, [SXM], before, alive=frozenset({"a-1"}))
    assert placed(after) == {"a-1": PCIE.id, "a-2": SXM.id}
    assert [each.generation for each in after.machines] == [1, 2]


def test_prices_that_move_move_no_machine_that_has_a_place() -> None:
    stack = described(a={"machines": 1, "tier": "fp8", "max_price": 3.0})
    before = place(stack, OFFERS, Placement())
    dearer = replace(PCIE, price=3.5)
    after = place(stack, [dearer, replace(SXM, price=0.5)], before, alive=frozenset({"a-1"}))
    assert after == before


def test_nothing_is_placed_beyond_the_hourly_budget() -> None:
    pool = {"machines": 2, "tier": "fp8"}
    assert len(place(described(4.02, a=pool), OFFERS, Placement()).machines) == 2
    with pytest.raises(PlacementError, match=r"with a-2 its machines would cost \$4.02 an hour.*is \$4.01"):
        place(described(4.01, a=pool), OFFERS, Placement())


def test_a_machine_that_was_never_rented_and_has_become_too_dear_takes_a_cheaper_offer_that_fits() -> None:
    stack = described(2.7, a={"machines": 1, "tier": "fp8"})
    before = place(stack, [PCIE], Placement())
    dearer = replace(PCIE, price=2.9)
    after = place(stack, [dearer, replace(SXM, price=2.6)], before)
    assert [(each.offer.id, each.generation) for each in after.machines] == [(SXM.id, 2)]
    assert place(stack, [dearer, SXM], before, frozenset({"a-1"})) == before, "one that is rented stays"
    with pytest.raises(PlacementError, match=r"with a-1 its machines would cost \$2.90 an hour"):
        place(stack, [dearer, SXM], before)


def test_the_best_offer_is_passed_over_where_the_budget_then_would_not_do_for_the_others() -> None:
    pools: dict[str, dict[str, object]] = {"a": {"machines": 1, "tier": "fp8"}, "b": {"machines": 1, "tier": "fp8"}}
    best, cheap = replace(SXM, price=2.2), replace(PCIE, price=2.0)
    assert set(placed(place(described(None, **pools), [best, cheap], Placement())).values()) == {best.id}
    tight = place(described(4.2, **pools), [best, cheap], Placement())
    assert sorted(placed(tight).values()) == sorted([best.id, cheap.id])


def test_a_pool_that_watch_scales_keeps_the_number_that_it_decided_within_its_bounds() -> None:
    stack = described(a={"machines": 2, "scale": {"least": 0, "most": 3}})
    pool = stack.pools["a"]
    assert count("a", pool, Placement()) == 2
    assert count("a", pool, Placement(numbers=(("a", 0),))) == 0
    assert count("a", pool, Placement(numbers=(("a", 9),))) == 3
    assert len(place(stack, OFFERS, Placement(numbers=(("a", 1),))).machines) == 1


def test_what_is_charged_is_what_is_placed_and_new_is_what_is_not_there() -> None:
    stack = described(a={"machines": 2, "tier": "fp8"})
    placement = place(stack, OFFERS, Placement())
    found = charges(stack, placement, frozenset({"a-2"}), {})
    assert [(each.machine, each.fresh, each.offer.price) for each in found] == [
        ("a-1", True, 2.01),
        ("a-2", False, 2.01),
    ]
    assert found[0].dollars_per_image == pytest.approx(0.0034, abs=1e-4)


def test_a_plan_breaks_even_where_the_hosted_price_pays_the_hour() -> None:
    stack = described(a={"machines": 1, "tier": "fp8"})
    (plan,) = pool_plans(stack, OFFERS, Judge(), 10_000)
    turbo, _, quality = plan.break_even
    assert turbo.breaks_even_at == pytest.approx(2.01 / 0.03)
    assert quality.dollars_per_image > turbo.dollars_per_image
    assert 0 < quality.busy < 1
    assert plan.month
    assert plan.month.machines == 1
    assert plan.month.always_on == pytest.approx(2.01 * 730)
    assert dict(plan.month.hosted)["Quality"] == pytest.approx(1000.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(GpuModel)),
            st.floats(0.1, 9.0),
            st.sampled_from(list(Market)),
            st.sampled_from(["us", "eu"]),
            st.sampled_from([1, 2]),
        ),
        max_size=12,
        unique_by=lambda each: (each[0], each[2], each[3], each[4]),
    ),
    st.sampled_from(list(Tier)),
    st.floats(0.5, 20.0),
)
def test_a_placement_suits_its_pool_keeps_to_the_budget_and_is_kept(
    sold: list[tuple[GpuModel, float, Market, str, int]], tier: Tier, budget: float
) -> None:
    offers = [offer(gpu, price, market, region, gpus) for gpu, price, market, region, gpus in sold]
    stack = described(budget, a={"machines": 3, "market": "spot", "tier": tier, "fallback": "on_demand"})
    try:
        placement = place(stack, offers, Placement())
    except PlacementError:
        return
    assert sum(each.offer.price for each in placement.machines) <= budget + 1e-6
    judge, wanted = Judge(), wishes(stack.pools["a"])
    for each in placement.machines:
        assert any(not judge.judge(each.offer, wish).refused for wish in wanted)
    assert place(stack, offers, placement) == placement
    assert place(stack, [], placement, alive=frozenset({"a-1", "a-2", "a-3"})) == placement
