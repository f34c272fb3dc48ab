"""From a request to the sampler's settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.contract import MAX_GUIDANCE, MAX_STEPS, GenerationRequest, Preset
from worker.presets import PRESETS, Sampling, free, sampling

MAKERS = {
    Preset.QUALITY_48: Sampling(48, (7.0,) * 45 + (3.0,) * 3, 0.0, 1.5),
    Preset.DEFAULT_20: Sampling(20, (7.0,) * 18 + (3.0,) * 2, 0.0, 1.75),
    Preset.TURBO_12: Sampling(12, (7.0,) * 11 + (3.0,), 0.5, 1.75),
}


def test_the_presets_are_the_makers() -> None:
    assert PRESETS == MAKERS


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_every_step_count_has_a_guidance_schedule_of_its_own_length(steps: int) -> None:
    made = free(steps)
    assert made.steps == steps == len(made.guidance)


@given(steps=st.integers(2, MAX_STEPS))
def test_guidance_falls_once_and_the_last_step_polishes(steps: int) -> None:
    guidance = free(steps).guidance
    assert list(guidance) == sorted(guidance, reverse=True)
    assert set(guidance) == {7.0, 3.0}
    assert guidance.count(3.0) == max(1, round(steps / 16))


@given(steps=st.integers(1, MAX_STEPS))
def test_the_noise_schedule_narrows_from_forty_steps_on(steps: int) -> None:
    assert (free(steps).mu, free(steps).std) == (0.0, 1.5 if steps >= 40 else 1.75)


@pytest.mark.parametrize("steps", [0, -1, MAX_STEPS + 1])
def test_no_schedule_is_made_for_steps_out_of_range(steps: int) -> None:
    with pytest.raises(ValueError, match="1 to 100"):
        free(steps)


@given(guidance=st.lists(st.floats(1, 10), max_size=12), steps=st.integers(1, 12))
def test_a_sampling_cannot_hold_a_schedule_of_another_length(guidance: list[float], steps: int) -> None:
    if len(guidance) == steps:
        assert Sampling(steps, tuple(guidance), 0.0, 1.0).guidance == tuple(guidance)
    else:
        with pytest.raises(ValueError, match="guidance entries"):
            Sampling(steps, tuple(guidance), 0.0, 1.0)


def test_a_request_takes_its_steps_else_its_preset_else_the_default() -> None:
    def asked(steps: int | None = None, preset: Preset | None = None) -> Sampling:
        return sampling(GenerationRequest(prompt="a fox", steps=steps, preset=preset, seed=1))

    assert asked(steps=25) == free(25)
    assert asked(preset=Preset.TURBO_12) == MAKERS[Preset.TURBO_12]
    assert asked() == MAKERS[Preset.DEFAULT_20]


@given(
    guidance=st.none() | st.lists(st.floats(0, MAX_GUIDANCE), min_size=3, max_size=3).map(tuple),
    mu=st.none() | st.floats(-4, 4),
    std=st.none() | st.floats(0.1, 4),
)
def test_own_numbers_replace_each_what_the_steps_would_take(
    guidance: tuple[float, ...] | None, mu: float | None, std: float | None
) -> None:
    wanted = GenerationRequest(prompt="a fox", steps=3, guidance=guidance, mu=mu, std=std, seed=1)
    shaped, made = free(3), sampling(wanted)
    assert made.guidance == (guidance or shaped.guidance)
    assert made.mu == (shaped.mu if mu is None else mu)
    assert made.std == (shaped.std if std is None else std)
    assert GenerationRequest.model_validate_json(wanted.model_dump_json()) == wanted


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"guidance": [7.0]}, "guidance: say how many steps"),
        ({"mu": 0.5, "std": 1.0, "preset": "V4_TURBO_12"}, "mu, std: say how many steps"),
        ({"steps": 3, "guidance": [7.0, 3.0]}, "guidance: has 2 entries, and there are 3 steps"),
        ({"steps": 1, "guidance": [True]}, "guidance.0"),
        ({"steps": 1, "guidance": [-0.1]}, "guidance.0"),
        ({"steps": 1, "guidance": [MAX_GUIDANCE + 0.1]}, "guidance.0"),
        ({"steps": 1, "guidance": [float("nan")]}, "guidance.0"),
        ({"steps": 1, "guidance": []}, "guidance"),
        ({"steps": 1, "std": 0.0}, "std"),
        ({"steps": 1, "mu": float("inf")}, "mu"),
    ],
)
def test_own_numbers_out_of_place_or_bounds_are_refused_by_name(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerationRequest.model_validate({"prompt": "a fox", "seed": 1, **fields})
    assert said in str(caught.value)
