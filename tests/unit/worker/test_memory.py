"""What fits on which card, before anything is loaded: the true model's sizes, arithmetic only."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.contract import MAX_ASPECT, MAX_PIXELS, MAX_SIDE, MIN_SIDE, SIDE_STEP, GenerationRequest, Tier
from worker.engine import LoadError
from worker.engine.memory import GIB, Model, Text, TextShape, largest, nearest, parts, plan
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
    assert sum(found.parts(SQUARE).values()) <= gib * GIB


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


def test_a_refusal_names_no_tier_that_the_card_cannot_run() -> None:
    a100 = Gpu("NVIDIA A100-PCIE-40GB", (8, 0))
    with pytest.raises(LoadError, match=r"what fits: tier int8 \(.*, nf4 \(") as refused:
        plan(NF4, Tier.EXACT, 39 * GIB, SQUARE, a100)
    assert "fp8" not in str(refused.value)
    with pytest.raises(LoadError, match=r"take one of exact, int8$"):
        plan(BF16, Tier.NF4, 39 * GIB, SQUARE, a100)


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


def test_a_size_that_does_not_fit_is_refused_with_the_numbers_and_the_nearest_size_that_does() -> None:
    found = plan(NF4, Tier.FP8, 37 * GIB, SQUARE)
    assert found.why_not(1024, 1024) is None
    said = found.why_not(2048, 1152)
    assert said is not None
    assert "2048x1152 needs " in said
    assert " GiB of GPU memory and 37.0 are free (two transformers 18." in said
    smaller = nearest(2048, 1152, found.max_pixels)
    assert smaller is not None
    assert f"{smaller[0]}x{smaller[1]} fits, and so does any size of up to {found.max_pixels} pixels" in said


sides = st.integers(MIN_SIDE // SIDE_STEP, MAX_SIDE // SIDE_STEP).map(lambda steps: SIDE_STEP * steps)


@given(sides, sides, pixels)
def test_the_nearest_smaller_size_can_be_asked_for_and_fits(width: int, height: int, most: int) -> None:
    assume(max(width, height) <= MAX_ASPECT * min(width, height) and width * height > most)
    found = nearest(width, height, most)
    if found is None:
        assert min(width, height) * math.sqrt(most / (width * height)) < MIN_SIDE
        return
    assert found[0] * found[1] <= most
    GenerationRequest(prompt="a", width=found[0], height=found[1], seed=0)
    # No further off than a step of the sides, unless a narrow shape has to become less narrow.
    exact = math.sqrt(most / (width * height))
    assert all(
        made > exact * side - SIDE_STEP or max(found) > (MAX_ASPECT - 0.5) * min(found)
        for made, side in zip(found, (width, height), strict=True)
    )


@pytest.mark.parametrize("tier", list(Tier))
def test_what_two_requests_share_between_their_steps_is_held_beside_everything_else(tier: Tier) -> None:
    shape = Shape()
    tables = 2 * 100 * (34 * 4 + 1) * shape.width * 2
    text, rope = 2048 * shape.width * 2, (2048 + 2 * 4096) * 256 * 4
    held = parts(NF4, tier, RESIDENT, SQUARE)["what two requests' steps share"]
    assert held == pytest.approx(2 * (tables + text + rope), rel=0.03)


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
