"""The catalogue of GPUs: held to what was measured and to the worker's own sums; the fleet's figures win."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.costs.gpus import (
    CARDS,
    FREE,
    NEEDS_GIB,
    Basis,
    GpuModel,
    Made,
    calibrated,
    named,
    speed,
    why_not,
)
from infra.costs.hosted import PUBLISHED
from infra.paths import repository_root
from worker.contract import Tier
from worker.engine.memory import GIB, least
from worker.engine.tier import Gpu
from worker.engine.tier import why_not as engine_why_not

BENCH = json.loads((repository_root() / "docs" / "bench-gpu.json").read_text())["rows"]
CAPABILITY = {"Ampere": (8, 0), "Ada": (8, 9), "Hopper": (9, 0)}


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("steps", [12, 20, 25, 48])
def test_the_h200_is_as_fast_as_it_was_measured(tier: Tier, steps: int) -> None:
    listed = speed(GpuModel.H200, tier)
    assert listed.basis is Basis.MEASURED
    assert listed.seconds(steps) == pytest.approx(BENCH[f"ours, {tier}"]["image"][str(steps)], rel=0.02)


@pytest.mark.parametrize("tier", [Tier.EXACT, Tier.FP8])
@pytest.mark.parametrize("side", [512, 2048])
def test_a_step_grows_with_the_picture_as_it_was_measured(tier: Tier, side: int) -> None:
    listed, bench = speed(GpuModel.H200, tier), BENCH[f"ours, {tier}"]
    step = (listed.seconds(26, side * side) - listed.seconds(25, side * side)) / bench[f"step at {side}"]
    assert step == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("tier", list(Tier))
def test_the_memory_that_a_tier_wants_is_the_workers_own_sum(tier: Tier) -> None:
    assert NEEDS_GIB[tier] == pytest.approx(least(tier, 1024 * 1024) / GIB, abs=0.7)
    assert NEEDS_GIB[tier] >= least(tier, 1024 * 1024) / GIB


def test_a_card_is_refused_what_the_engine_would_refuse_it() -> None:
    for model, card in CARDS.items():
        for tier in Tier:
            refused = engine_why_not(tier, Gpu(model, CAPABILITY[card.family])) is not None
            too_small = card.memory_gib * FREE < NEEDS_GIB[tier]
            assert (why_not(model, tier) is not None) == (refused or too_small), (model, tier)


def test_every_other_speed_says_that_and_how_it_is_derived_and_none_beats_the_cards_peak() -> None:
    for model in set(GpuModel) - {GpuModel.H200}:
        for tier in Tier:
            if why_not(model, tier) is None:
                listed = speed(model, tier)
                assert listed.basis is Basis.DERIVED
                assert "H200's profile" in listed.how
                peak = max(CARDS[model].bf16, CARDS[model].fp8, CARDS[model].int8)
                assert listed.images_per_hour() / 60 < peak * 1e12 / 4.1e15 * 60


def test_int8_is_derived_from_what_its_kernel_is_at_home_on() -> None:
    """On a Hopper card it runs as on the H200; an Ampere card has twice the rate in INT8, and gets that twice."""

    def products(model: GpuModel, tier: Tier) -> float:
        found = re.search(r"products x([\d.]+)", speed(model, tier).how)
        assert found
        return float(found[1]) * float(BENCH[f"ours, {tier}"]["step"])

    assert products(GpuModel.H100_SXM, Tier.INT8) == pytest.approx(BENCH["ours, int8"]["step"])
    twice = products(GpuModel.A100_SXM_80, Tier.EXACT) / products(GpuModel.A100_SXM_80, Tier.INT8)
    assert twice == pytest.approx(2, rel=0.1)


def test_the_fleets_own_figures_win_and_move_the_cards_beside_them_by_the_same_factor() -> None:
    pair = (GpuModel.H100_SXM, Tier.FP8)
    twice = 2 * speed(*pair).seconds()
    fleet = {pair: Made(100, 100 * twice)}
    own, other = calibrated(*pair, fleet), calibrated(GpuModel.A100_SXM_80, Tier.EXACT, fleet)
    assert own.basis is Basis.FLEET
    assert own.seconds() == pytest.approx(twice)
    assert other.basis is Basis.DERIVED
    assert other.seconds() == pytest.approx(2 * speed(GpuModel.A100_SXM_80, Tier.EXACT).seconds())
    assert "this fleet's other cards" in other.how


def test_a_handful_of_images_changes_nothing() -> None:
    pair = (GpuModel.H100_SXM, Tier.FP8)
    assert calibrated(*pair, {pair: Made(3, 900.0)}) == speed(*pair)


@given(st.floats(0.2, 5.0))
def test_the_ranking_of_two_cards_is_not_turned_by_figures_of_a_third(factor: float) -> None:
    third = (GpuModel.H200, Tier.EXACT)
    fleet = {third: Made(100, 100 * factor * speed(*third).seconds())}
    fast, slow = ((GpuModel.H100_SXM, Tier.EXACT), (GpuModel.A100_SXM_80, Tier.EXACT))
    assert calibrated(*fast, fleet).seconds() < calibrated(*slow, fleet).seconds()


@pytest.mark.parametrize(
    ("text", "memory", "card"),
    [
        ("NVIDIA H100 80GB HBM3", 80, GpuModel.H100_SXM),
        ("NVIDIA H100 PCIe", 80, GpuModel.H100_PCIE),
        ("NVIDIA H100 NVL", 94, GpuModel.H100_NVL),
        ("H100", 80, GpuModel.H100_PCIE),
        ("H100 SXM5 80GB SXM5", 80, GpuModel.H100_SXM),
        ("NVIDIA A100-SXM4-80GB", 80, GpuModel.A100_SXM_80),
        ("NVIDIA A100 80GB PCIe", 80, GpuModel.A100_PCIE_80),
        ("A100 A100 SXM4 40GB SXM4", 40, GpuModel.A100_SXM_40),
        ("A100 PCIe", 40, GpuModel.A100_PCIE_40),
        ("NVIDIA H200", 141, GpuModel.H200),
        ("NVIDIA L40S", 48, GpuModel.L40S),
        ("NVIDIA GeForce RTX 4090", 24, GpuModel.RTX_4090),
        ("NVIDIA B200", 180, None),
        ("RTX A4000", 16, None),
    ],
)
def test_providers_names_of_cards_are_understood(text: str, memory: float, card: GpuModel | None) -> None:
    assert named(text, memory) is card


def test_the_published_figures_are_beyond_what_the_cards_can_do_and_the_reason_is_said() -> None:
    for row in PUBLISHED:
        assert row.alone > row.bound
        assert row.ours is None or row.ours < row.bound
        assert "peak allows" in row.reason
