"""When the second place on a worker opens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.lookahead import Course, Tails, after, ends_in_s, may_open
from worker.contract import Accepted, Started, Step

ID = "job.1"
AHEAD_S = 0.3


def watched(steps: int, pace_s: float, seen: int, text_s: float = 0.0) -> tuple[Course, float]:
    """A generation that began at 0, and when its last seen step was done."""
    course = after(None, Started(id=ID, steps=steps), 0.0)
    at = text_s
    for step in range(1, seen + 1):
        at += pace_s
        course = after(course, Step(id=ID, step=step, steps=steps), at)
    assert course is not None
    return course, at


@given(
    steps=st.integers(3, 60),
    pace_s=st.floats(0.01, 5),
    tail_s=st.floats(0, 2),
    text_s=st.floats(0, 3),
    data=st.data(),
)
def test_at_an_even_pace_the_end_is_foretold_exactly(
    steps: int, pace_s: float, tail_s: float, text_s: float, data: st.DataObject
) -> None:
    seen = data.draw(st.integers(2, steps))
    course, at = watched(steps, pace_s, seen, text_s)
    end = text_s + steps * pace_s + tail_s
    left = ends_in_s(course, tail_s, at)
    assert left == pytest.approx(end - at, abs=1e-6)


@given(steps=st.integers(4, 60), pace_s=st.floats(0.4, 5), late_s=st.floats(0, 1e6), data=st.data())
def test_a_worker_that_hangs_is_never_about_to_end(
    steps: int, pace_s: float, late_s: float, data: st.DataObject
) -> None:
    seen = data.draw(st.integers(2, steps - 2))
    course, at = watched(steps, pace_s, seen)
    assert not may_open(ends_in_s(course, 0.0, at + late_s), AHEAD_S)


@given(steps=st.integers(3, 60), pace_s=st.floats(0.01, 5), late_s=st.floats(0, 100))
def test_time_that_passes_brings_the_end_nearer_and_never_beyond(steps: int, pace_s: float, late_s: float) -> None:
    course, at = watched(steps, pace_s, 2)
    early, late = ends_in_s(course, 0.1, at), ends_in_s(course, 0.1, at + late_s)
    assert early is not None
    assert late is not None
    assert 0 <= late <= early


@pytest.mark.parametrize("seen", [0, 1])
def test_before_two_steps_are_done_nothing_is_foretold(seen: int) -> None:
    course, at = watched(20, 0.1, seen)
    assert ends_in_s(course, 0.0, at) is None
    assert not may_open(None, AHEAD_S)


def test_one_that_waits_behind_another_has_no_course() -> None:
    assert after(None, Accepted(id=ID), 0.0) is None


def test_steps_that_are_told_all_at_once_to_whoever_joins_late_are_no_pace() -> None:
    course = after(None, Started(id=ID, steps=20), 100.0)
    for step in range(1, 11):
        course = after(course, Step(id=ID, step=step, steps=20), 100.0)
    assert course is not None
    assert ends_in_s(course, 0.0, 100.0) is None
    course = after(course, Step(id=ID, step=11, steps=20), 100.5)
    assert course is not None
    assert ends_in_s(course, 0.0, 100.5) == pytest.approx(9 * 0.5)


def test_nought_ahead_means_never() -> None:
    assert not may_open(0.0, 0.0)


def test_what_comes_after_the_last_step_is_learnt_for_each_size() -> None:
    tails = Tails()
    assert tails.of(1) == 0
    tails = tails.with_one(256 * 256, 0.1).with_one(2048 * 2048, 2.0)
    assert tails.of(256 * 256) == pytest.approx(0.1)
    assert tails.of(512 * 512) == pytest.approx(0.1), "the nearest size's"
    assert tails.with_one(2048 * 2048, 1.0).of(2048 * 2048) == pytest.approx(1.7)
