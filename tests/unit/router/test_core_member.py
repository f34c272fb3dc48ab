"""How long a worker is let alone after an attempt that failed."""

from __future__ import annotations

import pytest

from router.jobs import AttemptEnd
from router.member import failures_after, pause_s


@pytest.mark.parametrize("end", [AttemptEnd.RETURNED, AttemptEnd.LOST, AttemptEnd.CRASHED])
def test_a_worker_that_keeps_failing_is_tried_ever_more_rarely(end: AttemptEnd) -> None:
    failures, pauses = 0, []
    for _ in range(7):
        failures = failures_after(end, failures)
        pauses.append(pause_s(end, failures))
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("end", [AttemptEnd.FINISHED, AttemptEnd.REFUSED])
def test_a_worker_that_answered_as_it_should_begins_anew(end: AttemptEnd) -> None:
    assert failures_after(end, 6) == 0
    assert pause_s(end, 0) == 0


@pytest.mark.parametrize("end", [AttemptEnd.CANCELLED, None])
def test_an_attempt_that_its_owner_or_another_ended_tells_nothing_of_the_worker(end: AttemptEnd | None) -> None:
    assert failures_after(end, 3) == 3
    assert pause_s(end, 3) == 0
