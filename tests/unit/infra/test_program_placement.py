"""Which offer each machine takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clouds import Market, Offer
from infra.clouds.hosts import offers_of
from infra.identity import Identity, IdentityError, ensure_identity
from infra.planning.placement import (
    Placed,
    Placement,
    PlacementError,
    devices,
    machine_names,
    place,
    read_placement,
    write_placement,
)
from infra.stack import StackDescription


def cpu(market: Market) -> Offer:
    return Offer(f"cpu.{market}", "local", market, "", 0, "here", 0.0)


def gpu(index: int, market: Market = Market.ON_DEMAND, price: float = 0.0) -> Offer:
    return Offer(f"gpu-{index}.{market}", "local", market, "NVIDIA H100", 1, "here", price)


CPUS = [cpu(market) for market in Market]


def described(model: str = "tiny", **pools: dict[str, object]) -> StackDescription:
    described_pools = {name: {"first_port": 9000 + 100 * i} | pool for i, (name, pool) in enumerate(pools.items())}
    return StackDescription.model_validate({"name": "s", "model": model, "pools": described_pools})


def test_every_machine_gets_an_offer_of_its_pools_market() -> None:
    placement = place(described(a={"machines": 2}, b={"machines": 1, "market": "spot"}), CPUS, Placement())
    assert {placed.machine: placed.offer.id for placed in placement.machines} == {
        "a-1": "cpu.on_demand",
        "a-2": "cpu.on_demand",
        "b-1": "cpu.spot",
    }


def test_weights_that_are_not_tiny_want_a_gpu_for_each_machine() -> None:
    placement = place(described("owner/name", a={"machines": 2}), [*CPUS, gpu(0), gpu(1)], Placement())
    assert [placed.offer.id for placed in placement.machines] == ["gpu-0.on_demand", "gpu-1.on_demand"]


def test_a_gpu_of_this_computer_goes_to_one_machine_whatever_the_market() -> None:
    offers = [gpu(0, market) for market in Market]
    with pytest.raises(PlacementError, match=r"wants a GPU for each of 2 machine\(s\), and this computer offers 1"):
        place(described("owner/name", a={"machines": 1}, b={"machines": 1, "market": "spot"}), offers, Placement())


def test_without_enough_gpus_it_says_what_to_change() -> None:
    with pytest.raises(PlacementError, match=r"Lower `pools.a.machines`, or take STACK=gpu.*MODEL=tiny needs no GPU"):
        place(described("owner/name", a={"machines": 3}), [*CPUS, gpu(0)], Placement())


def test_a_pool_may_ask_for_the_cpu_or_a_gpu_itself() -> None:
    pools: dict[str, dict[str, object]] = {
        "a": {"machines": 1, "device": "gpu"},
        "b": {"machines": 1, "device": "cpu"},
    }
    placement = place(described("tiny", **pools), [*CPUS, gpu(0)], Placement())
    assert [devices(placed.offer) for placed in placement.machines] == [("cuda:0",), ("cpu",)]


def test_a_machine_with_several_gpus_has_a_worker_for_each() -> None:
    rented = Offer("x", "elsewhere", Market.SPOT, "H100", 4, "eu", 9.0)
    assert devices(rented) == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


def test_a_valid_place_is_kept_when_something_cheaper_comes_up() -> None:
    one = described("owner/name", a={"machines": 1})
    before = place(one, [gpu(3, price=2.0)], Placement())
    dearer = [gpu(0, price=1.0), gpu(3, price=9.0)]
    assert place(one, dearer, before).machines == (Placed("a-1", gpu(3, price=9.0)),), "for what it costs now"
    assert place(one, dearer, before, frozenset({"a-1"})) == before, "what runs was rented for its price"


def test_what_is_to_be_rented_yet_keeps_within_the_budget_and_its_pools_price_as_it_is_now() -> None:
    def hired(price: float) -> Offer:
        return Offer("h100", "spheron", Market.ON_DEMAND, "H100-PCIe", 1, "eu", price, 80.0)

    def stack(**pool: object) -> StackDescription:
        pools = {"a": {"machines": 1, "first_port": 9000, "gpus": ["H100-PCIe"], **pool}}
        said = {"name": "s", "cloud": "spheron", "model": "owner/name", "budget_per_hour": 3, "pools": pools}
        return StackDescription.model_validate(said)

    before = place(stack(), [hired(2.0)], Placement())
    assert place(stack(), [hired(2.5)], before).machines == (Placed("a-1", hired(2.5)),)
    with pytest.raises(PlacementError, match=r"would cost \$4.00 an hour, and `budget_per_hour` is \$3.00"):
        place(stack(), [hired(4.0)], before)
    with pytest.raises(PlacementError, match="is above `max_price`"):
        place(stack(max_price=2.2), [hired(2.5)], before)
    assert place(stack(max_price=2.2), [hired(4.0)], before, frozenset({"a-1"})) == before


def test_a_place_that_is_offered_no_more_is_taken_elsewhere_as_a_new_generation() -> None:
    one = described("owner/name", a={"machines": 1})
    before = place(one, [gpu(3)], Placement())
    assert place(one, [gpu(0)], before).machines == (Placed("a-1", gpu(0), 2),)


def test_another_market_is_another_place() -> None:
    before = place(described(a={"machines": 1}), CPUS, Placement())
    after = place(described(a={"machines": 1, "market": "spot"}), CPUS, before)
    assert after.machines == (Placed("a-1", cpu(Market.SPOT), 2),)


def test_a_machine_of_ones_own_keeps_its_place_and_has_the_gpus_that_are_described_now() -> None:
    def host(gpus: int) -> StackDescription:
        return StackDescription.model_validate(
            {
                "name": "s",
                "cloud": "hosts",
                "model": "owner/name",
                "hosts": {"big": {"address": "192.0.2.10", "gpus": gpus}},
                "pools": {"a": {"machines": 1, "first_port": 9000}},
            }
        )

    before = place(host(1), offers_of({"big": ("", 1, 0.0)}), Placement())
    (after,) = place(host(2), offers_of({"big": ("", 2, 0.0)}), before, frozenset({"a-1"})).machines
    assert devices(after.offer) == ("cuda:0", "cuda:1")
    assert after.generation == 1


counts = st.integers(0, 3)
gpus = st.sets(st.integers(0, 5)).map(sorted)


@given(first=st.tuples(counts, counts), second=st.tuples(counts, counts), before=gpus, now=gpus)
def test_no_gpu_is_given_twice_and_nothing_moves_without_need(
    first: tuple[int, int], second: tuple[int, int], before: list[int], now: list[int]
) -> None:
    def stack(counted: tuple[int, int]) -> StackDescription:
        return described("owner/name", a={"machines": counted[0]}, b={"machines": counted[1]})

    def offers(indices: list[int]) -> list[Offer]:
        return [gpu(index, market) for index in indices for market in Market]

    if sum(first) > len(before) or sum(second) > len(now):
        return
    old = place(stack(first), offers(before), Placement())
    new = place(stack(second), offers(now), old)
    taken = [devices(placed.offer) for placed in new.machines]
    assert len(taken) == len(set(taken)) == sum(second)
    for placed in new.machines:
        previous = old.of(placed.machine)
        if previous is None:
            assert placed.generation == 1
        elif previous.offer in offers(now):
            assert placed == previous
        else:
            assert placed.generation == previous.generation + 1


def test_a_decision_reads_back_as_it_was_written(tmp_path: Path) -> None:
    placement = place(described(a={"machines": 2}), CPUS, Placement())
    write_placement(tmp_path / "placement.json", placement)
    assert read_placement(tmp_path / "placement.json") == placement


def test_no_decision_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert read_placement(tmp_path / "placement.json") == Placement()


def test_a_decision_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "placement.json").write_text('{"machines": 7}')
    with pytest.raises(PlacementError, match=r"placement\.json is not a placement"):
        read_placement(tmp_path / "placement.json")


def test_machines_are_numbered_within_their_pool() -> None:
    assert machine_names("batch", 2) == ("batch-1", "batch-2")


def test_a_stacks_id_is_drawn_once(tmp_path: Path) -> None:
    drawn = ensure_identity(tmp_path / "stack-id")
    assert ensure_identity(tmp_path / "stack-id") == drawn
    assert drawn != ensure_identity(tmp_path / "another")


def test_a_machines_name_holds_the_stacks_id_the_resource_and_its_generation() -> None:
    assert Identity("abcdefgh").machine("batch-1", 3) == "lp-abcdefgh-batch-1-g3"


def test_a_damaged_id_is_refused_because_it_names_what_is_rented(tmp_path: Path) -> None:
    (tmp_path / "stack-id").write_text("")
    with pytest.raises(IdentityError, match="restore the file"):
        ensure_identity(tmp_path / "stack-id")
