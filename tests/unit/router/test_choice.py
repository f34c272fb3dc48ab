"""Whose turn it is, what a worker can make, how long it will take, and when a worker may help another pool out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.choice import ANY_TERMS, PIXEL_CLASS, Capability, Lane, Spill, Terms, fair_order, pixels_of, work_of
from router.pace import Pace, Service, fitted
from router.spill import SpillRule, spills
from worker.contract import MAX_ASPECT, MAX_SIDE, MIN_SIDE, SIDE_STEP, GenerationRequest, Preset

sides = st.integers(MIN_SIDE // SIDE_STEP, MAX_SIDE // SIDE_STEP).map(lambda n: n * SIDE_STEP)
requests = st.builds(
    lambda width, height, steps: (
        GenerationRequest(prompt="a", width=width, height=max(height, -(-width // (16 * 6)) * 16), steps=steps, seed=1)
        if width <= MAX_ASPECT * height and height <= MAX_ASPECT * width
        else GenerationRequest(prompt="a", width=width, height=width, steps=steps, seed=1)
    ),
    sides,
    sides,
    st.none() | st.integers(1, 100),
)
words = st.none() | st.sampled_from(["exact", "fp8", "ideogram/4", "a/b/c"])


@given(requests, words.filter(lambda word: word is None or "/" not in word), words)
def test_a_lane_is_told_by_its_name(request: GenerationRequest, tier: str | None, model: str | None) -> None:
    lane = Lane.of("key_1", request, Terms(tier=tier, model=model))
    assert Lane.parse(lane.name) == lane


@given(requests, st.integers(1, 5_000_000), st.integers(1, 10**9))
def test_a_job_that_a_worker_can_make_lies_in_a_lane_that_fits(
    request: GenerationRequest, max_pixels: int, max_work: int
) -> None:
    lane = Lane.of("key_1", request, ANY_TERMS)
    worker = Capability("exact", "m", max_pixels)
    if pixels_of(request) <= max_pixels and work_of(request) <= max_work:
        assert lane.fits(worker, max_work)
    if pixels_of(request) - PIXEL_CLASS >= max_pixels:
        assert not lane.fits(worker, None)
    if work_of(request) > 2 * max_work:
        assert not lane.fits(worker, max_work)


@pytest.mark.parametrize(
    ("terms", "fits"),
    [
        (Terms(), True),
        (Terms(tier="fp8"), True),
        (Terms(tier="exact"), False),
        (Terms(model="m"), True),
        (Terms(model="other"), False),
        (Terms(tier="fp8", model="other"), False),
    ],
)
def test_tier_and_model_are_what_the_worker_says_of_itself(terms: Terms, fits: bool) -> None:
    request = GenerationRequest(prompt="a", seed=1)
    assert Lane.of("key_1", request, terms).fits(Capability("fp8", "m", None), None) is fits
    if terms.tier or terms.model:
        assert not Lane.of("key_1", request, terms).fits(Capability(), None), "it has not said anything yet"


def test_work_is_pixels_times_the_steps_that_were_asked_for_in_one_way_or_another() -> None:
    def work(steps: int | None = None, preset: Preset | None = None) -> int:
        return work_of(GenerationRequest(prompt="a", width=256, height=512, steps=steps, preset=preset, seed=1))

    assert work(steps=7) == 256 * 512 * 7
    assert work() == work(preset=Preset.DEFAULT_20) == 256 * 512 * 20
    assert (work(preset=Preset.QUALITY_48), work(preset=Preset.TURBO_12)) == (256 * 512 * 48, 256 * 512 * 12)


@given(st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=60))
def test_a_key_that_waits_is_served_before_any_other_is_served_twice(rounds: list[set[str]]) -> None:
    """Each round names the keys that wait; the first of the order has its turn."""
    turns: dict[str, int] = {}
    passed: dict[str, list[str]] = {}
    for number, waiting in enumerate(rounds, start=1):
        served = fair_order(waiting, turns, ())[0]
        turns[served] = number
        passed = {key: [*passed.get(key, []), served] for key in waiting - {served}}
        for key, others in passed.items():
            assert len(others) == len(set(others)), f"{key} waited while somebody was served twice"


def test_a_key_at_its_limit_is_passed_over() -> None:
    assert fair_order(["a", "b"], {"a": 1, "b": 2}, {"a"}) == ["b"]


@given(st.floats(0, 5), st.floats(1e-9, 1e-6), st.sets(st.integers(10**6, 10**8), min_size=3, max_size=20))
def test_a_pace_that_is_a_line_is_found(base: float, slope: float, works: set[int]) -> None:
    line = Pace(base, slope)
    found = fitted([Service(work, line.seconds(work)) for work in works])
    assert found is not None
    for work in works:
        assert found.seconds(work) == pytest.approx(line.seconds(work), rel=0.2, abs=0.01)


def test_jobs_of_one_size_tell_a_pace_in_proportion() -> None:
    found = fitted([Service(100, 2.0), Service(100, 4.0)])
    assert found == Pace(0.0, 0.03)
    assert fitted([]) is None


@given(st.floats(0, 5), st.floats(1e-9, 1e-3), st.floats(0, 1000))
def test_the_work_within_a_time_takes_no_longer(base: float, slope: float, seconds: float) -> None:
    pace = Pace(base, slope)
    work = pace.work_within(seconds)
    assert work == 0 or pace.seconds(work) <= seconds * (1 + 1e-9)


RULE = SpillRule(giver="interactive", taker="batch", longest_s=4.0, idle_kept=2)
PACE = Pace(1.0, 1e-6)
FIVE = tuple("abcde")


def test_a_worker_helps_out_only_while_enough_others_stay_idle_and_only_with_what_is_short() -> None:
    (allowed,) = spills([RULE], "interactive", ("b", "a"), PACE)
    assert allowed == Spill("batch", 3_000_000, ("a", "b"), 2)
    assert spills([RULE], "interactive", ("a",), PACE) == ()
    assert spills([RULE], "batch", FIVE, PACE) == (), "never the other way round, unless a rule says so"
    assert spills([RULE], "interactive", FIVE, None) == (), "what cannot be predicted is not done"
    assert spills([RULE], "interactive", FIVE, Pace(5.0, 1e-6)) == (), "everything takes too long"
