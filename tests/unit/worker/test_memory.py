"""What fits on which card, before anything is loaded: the true model's sizes, arithmetic only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.contract import MAX_PIXELS, MIN_SIDE, Tier
from worker.engine import LoadError
from worker.engine.memory import GIB, Model, Text, TextShape, largest, parts, plan
from worker.engine.tier import Gpu, why_not
from worker.engine.transformer import Shape

NF4 = Model(Shape(), TextShape(), nf4=True, text_nf4=True)
BF16 = Model(Shape(), TextShape(), nf4=False, text_nf4=False)
SQUARE = 1024 * 1024
RESIDENT = Text(packed=False, parked=False)

pixels = st.integers(MIN_SIDE * MIN_SIDE // 256, MAX_PIXELS // 256).map(lambda tokens: 256 * tokens)


def test_the_weights_are_what_the_true_model_weighs() -> None:
    found = parts(NF4, Tier.EXACT, RESIDENT, SQUARE)
    # 9.28 billion parameters each, and 7.57 billion of the language model.
    assert found["two transformers"] == pytest.approx(2 * 2 * 9.28e9, rel=0.01)
    assert found["text encoder"] == pytest.approx(2 * 7.57e9, rel=0.01)


@pytest.mark.parametrize(
    ("gib", "tier", "text"),
    [
        (139, Tier.EXACT, RESIDENT),
        (78, Tier.EXACT, RESIDENT),
        (78, Tier.FP8, RESIDENT),
        (78, Tier.INT8, RESIDENT),
        (47, Tier.FP8, RESIDENT),
        (30, Tier.FP8, Text(packed=True, parked=False)),
        (23, Tier.NF4, Text(packed=True, parked=False)),
    ],
)
def test_a_card_serves_1024_square_in_its_tier(gib: float, tier: Tier, text: Text) -> None:
    found = plan(NF4, tier, gib * GIB, SQUARE)
    assert found.text == text
    assert found.max_pixels >= SQUARE
    assert found.bytes <= gib * GIB


def test_a_large_picture_on_a_small_card_parks_the_text_encoder() -> None:
    assert plan(NF4, Tier.NF4, 23 * GIB, MAX_PIXELS).text == Text(packed=True, parked=True)


def test_a_refusal_has_the_numbers_the_sizes_that_fit_and_the_tiers_that_would() -> None:
    with pytest.raises(LoadError) as refused:
        plan(NF4, Tier.EXACT, 23 * GIB, SQUARE)
    said = str(refused.value)
    assert "tier exact does not fit: an image of 1024x1024 needs " in said
    assert "and 23.0 are free" in said
    assert "two transformers 34." in said
    assert "what fits: tier nf4 (needs " in said


def test_a_refusal_names_the_images_that_the_tier_could_make() -> None:
    free = sum(parts(NF4, Tier.NF4, Text(packed=True, parked=True), SQUARE).values())
    with pytest.raises(LoadError, match=r"with nf4 it can make images of up to \d+x\d+ in area"):
        plan(NF4, Tier.NF4, free, MAX_PIXELS)


def test_nf4_transformers_with_a_whole_text_encoder_are_planned_as_they_are() -> None:
    mixed = Model(Shape(), TextShape(), nf4=True, text_nf4=False)
    assert plan(mixed, Tier.NF4, 78 * GIB, SQUARE).text == Text(packed=False, parked=False)
    with pytest.raises(LoadError, match="tier nf4 does not fit"):
        plan(mixed, Tier.NF4, 20 * GIB, SQUARE)


def test_packed_tiers_want_packed_weights_before_anything_is_loaded() -> None:
    with pytest.raises(LoadError, match="these are not nf4; take one of exact"):
        plan(BF16, Tier.NF4, 78 * GIB, SQUARE)


def test_where_nothing_fits_it_says_so() -> None:
    with pytest.raises(LoadError, match="no tier fits: take a GPU with more memory"):
        plan(NF4, Tier.FP8, 8 * GIB, SQUARE)


def test_nf4_is_offered_only_for_weights_that_are_nf4() -> None:
    with pytest.raises(LoadError) as refused:
        plan(BF16, Tier.EXACT, 23 * GIB, SQUARE)
    assert "nf4" not in str(refused.value)


@given(st.sampled_from(list(Tier)), st.booleans(), st.booleans(), pixels, pixels)
def test_a_larger_image_never_needs_less(tier: Tier, packed: bool, parked: bool, one: int, other: int) -> None:
    small, large = sorted((one, other))
    text = Text(packed, parked)
    assert sum(parts(NF4, tier, text, small).values()) <= sum(parts(NF4, tier, text, large).values())


@given(st.sampled_from(list(Tier)), st.floats(8, 160))
def test_the_largest_image_fits_and_the_next_does_not(tier: Tier, gib: float) -> None:
    free = gib * GIB
    most = largest(NF4, tier, RESIDENT, free)
    if most:
        assert sum(parts(NF4, tier, RESIDENT, most).values()) <= free
    if most < MAX_PIXELS:
        assert sum(parts(NF4, tier, RESIDENT, max(most + 256, MIN_SIDE * MIN_SIDE)).values()) > free


@pytest.mark.parametrize(
    ("name", "capability", "refused"),
    [
        ("Tesla V100", (7, 0), set(Tier)),
        ("NVIDIA A100 80GB PCIe", (8, 0), {Tier.FP8, Tier.FP8_ATTENTION}),
        ("NVIDIA RTX 4090", (8, 9), {Tier.FP8_ATTENTION}),
        ("NVIDIA H100 80GB HBM3", (9, 0), set()),
    ],
)
def test_a_tier_wants_a_gpu_that_has_its_arithmetic(name: str, capability: tuple[int, int], refused: set[Tier]) -> None:
    found = {tier: why_not(tier, Gpu(name, capability)) for tier in Tier}
    assert {tier for tier, why in found.items() if why} == refused
    assert all(why is None or name in why for why in found.values())
