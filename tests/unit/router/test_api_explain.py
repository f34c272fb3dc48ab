"""What is wrong with a request is said by field, value and remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from router.api.explain import Fault, FaultCode, faults, nearest_sides, parsed, renamed
from router.contract import JobRequest
from router.contract.dialects.images import ImagesRequest
from router.contract.dialects.seed import GenerateRequest
from worker.contract import MAX_SIDE, MIN_SIDE, SIDE_STEP, GenerationRequest


def _faults(model: type[BaseModel], names: dict[str, str] | None = None, **fields: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    return [str(fault) for fault in faults(caught.value.errors(include_url=False), names)]


def test_a_side_between_two_steps_is_answered_with_both_neighbours() -> None:
    assert _faults(JobRequest, prompt="a", width=1000) == [
        "width: 1000 is not a multiple of 16; the nearest that can be made: 992 or 1008"
    ]


def test_a_side_out_of_range_is_answered_with_the_bound_that_it_passed() -> None:
    assert _faults(JobRequest, prompt="a", width=100, height=4096) == [
        "width: 100 is not a multiple of 16; the nearest that can be made: 256",
        "height: 4096 is too large; the largest is 2048",
    ]


@given(st.integers(-(10**9), 10**9))
def test_a_suggested_side_can_always_be_made_and_none_is_nearer(side: int) -> None:
    suggested = nearest_sides(side)
    makeable = range(MIN_SIDE, MAX_SIDE + 1, SIDE_STEP)
    assert set(suggested) <= set(makeable)
    assert min(abs(side - made) for made in makeable) == min(abs(side - made) for made in suggested)


def test_zero_steps_are_too_few() -> None:
    assert _faults(JobRequest, prompt="a", steps=0) == ["steps: 0 is too small; the smallest is 1"]


def test_an_empty_prompt_is_called_empty() -> None:
    assert _faults(JobRequest, prompt="") == ["prompt: is empty"]


def test_a_prompt_that_is_far_too_long_is_measured_and_not_repeated() -> None:
    (said,) = _faults(JobRequest, prompt="x" * 40_000)
    assert said == "prompt: has 40000 characters; at most 32768 are read"


def test_a_field_that_is_known_and_cannot_be_honoured_is_to_be_left_out() -> None:
    assert _faults(ImagesRequest, prompt="a", style="vivid") == ['style: "vivid" cannot be served here; leave it out']


def test_every_unknown_field_is_named() -> None:
    assert _faults(JobRequest, prompt="a", strength=3, cfg=1) == [
        "strength: is not a field of this request",
        "cfg: is not a field of this request",
    ]


def test_a_missing_field_is_required() -> None:
    assert _faults(GenerateRequest) == ["prompt: is required"]


def test_a_word_that_is_no_choice_is_answered_with_the_choices() -> None:
    (said,) = _faults(JobRequest, prompt="a", preset="V4_FLASH")
    assert said.startswith('preset: "V4_FLASH" is not one of the choices: ')
    assert "'V4_TURBO_12'" in said


def test_a_text_where_a_number_belongs_is_shown_as_it_came() -> None:
    assert _faults(JobRequest, prompt="a", steps="many") == ['steps: "many" is not a whole number']


def test_half_a_surrogate_pair_is_refused_in_words_that_can_be_sent() -> None:
    (said,) = _faults(JobRequest, prompt="\ud800")
    assert said == 'prompt: "\\ud800" is not text'
    assert said.encode()


def test_a_rule_about_two_fields_names_both() -> None:
    assert _faults(GenerationRequest, prompt="a", seed=1, steps=3, preset="V4_TURBO_12") == [
        "steps, preset: give one of them, not both"
    ]


def test_a_dialects_own_names_are_used_once_each() -> None:
    (said,) = _faults(
        GenerationRequest, {"width": "size", "height": "size"}, prompt="a", seed=1, width=2048, height=256
    )
    assert said.startswith("size: 2048x256 is longer than 6:1")


def test_a_message_without_fields_is_kept_whole() -> None:
    assert parsed("Out of luck: twice") == Fault((), "Out of luck: twice")


@given(
    st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=1, max_size=3, unique=True), st.text(max_size=20)
)
def test_what_a_fault_says_can_be_read_back(fields: list[str], message: str) -> None:
    fault = Fault(tuple(fields), message)
    assert parsed(str(fault)) == fault


def test_renaming_keeps_the_code() -> None:
    assert renamed(Fault(("width",), "x", FaultCode.UNKNOWN), {"width": "size"}) == Fault(
        ("size",), "x", FaultCode.UNKNOWN
    )


def test_what_is_no_list_is_shown() -> None:
    assert _faults(JobRequest, prompt="a", guidance=3) == ["guidance: 3 is not a list"]
