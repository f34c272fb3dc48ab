"""How long a worker is let alone after an attempt that failed, and what puts it in quarantine."""

from __future__ import annotations

import pytest

from router.dispatch import Outcome
from router.jobs import AttemptEnd, Cause, quarantine_after
from router.trust import UNKEPT_PAUSE_S, failures_after, pause_s

CRASHED, DIED, CORRUPT, FINISHED = AttemptEnd.CRASHED, AttemptEnd.DIED, AttemptEnd.CORRUPT, AttemptEnd.FINISHED


@pytest.mark.parametrize("end", [AttemptEnd.RETURNED, AttemptEnd.LOST, AttemptEnd.CRASHED, AttemptEnd.CORRUPT])
def test_a_worker_that_keeps_failing_is_tried_ever_more_rarely(end: AttemptEnd) -> None:
    failures, pauses = 0, []
    for _ in range(7):
        failures = failures_after(Outcome(end), failures)
        pauses.append(pause_s(Outcome(end), failures))
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("end", [AttemptEnd.FINISHED, AttemptEnd.REFUSED])
def test_a_worker_that_answered_as_it_should_begins_anew(end: AttemptEnd) -> None:
    assert failures_after(Outcome(end), 6) == 0
    assert pause_s(Outcome(end), 0) == 0


@pytest.mark.parametrize("end", [AttemptEnd.CANCELLED, None])
def test_an_attempt_that_its_owner_or_another_ended_tells_nothing_of_the_worker(end: AttemptEnd | None) -> None:
    assert failures_after(Outcome(end), 3) == 3
    assert pause_s(Outcome(end), 3) == 0


def test_a_worker_whose_image_cannot_be_stored_is_not_to_blame_and_is_spared_more_of_the_kind() -> None:
    unkept = Outcome(AttemptEnd.LOST, unkept=True)
    assert failures_after(unkept, 3) == 0
    assert pause_s(unkept, 0) == UNKEPT_PAUSE_S


def test_a_worker_that_is_lost_with_two_jobs_has_failed_once() -> None:
    both = [Outcome(AttemptEnd.LOST), Outcome(AttemptEnd.LOST, waited=True)]
    assert failures_after(both[1], failures_after(both[0], 0)) == 1
    assert failures_after(both[0], failures_after(both[1], 0)) == 1


@pytest.mark.parametrize(("first", "then"), [(CRASHED, CRASHED), (DIED, CRASHED), (CRASHED, DIED), (CORRUPT, DIED)])
def test_two_different_jobs_that_fail_in_a_row_put_their_worker_in_quarantine(
    first: AttemptEnd, then: AttemptEnd
) -> None:
    found = quarantine_after([(then, "job_2", "why"), (first, "job_1", "")])
    assert found is not None
    assert (found.cause, found.reason) == (Cause.FAULTS, "jobs job_1 and job_2 failed on it in a row; last: why")


def test_a_damaged_image_puts_its_worker_in_quarantine_at_once() -> None:
    found = quarantine_after([(CORRUPT, "job_1", "why"), (FINISHED, "job_0", "")])
    assert found is not None
    assert found.cause is Cause.CORRUPT


@pytest.mark.parametrize(
    "recent",
    [
        [],
        [(CRASHED, "job_1", "")],
        [(CRASHED, "job_1", ""), (CRASHED, "job_1", "")],
        [(CRASHED, "job_2", ""), (FINISHED, "job_1", "")],
        [(FINISHED, "job_2", ""), (CRASHED, "job_1", "")],
        [(AttemptEnd.REFUSED, "job_2", ""), (CRASHED, "job_1", "")],
    ],
)
def test_less_than_that_does_not(recent: list[tuple[AttemptEnd, str, str]]) -> None:
    assert quarantine_after(recent) is None
