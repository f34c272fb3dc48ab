"""What becomes of jobs, attempts and ids: pure functions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import ids
from router.contract import WorkerHealth
from router.dispatch import Outcome, unmade_by
from router.errors import WorkerBusyError, WorkerProtocolError, WorkerSilentError, WorkerUnauthorizedError
from router.jobs import AttemptEnd, Cancel, Fail, Requeue, after
from router.trust import belief_of, pause_s
from worker.contract import GENERATION_ID, Failed, FailureType

moments = st.integers(0, 2**48 - 1)
entropies = st.binary(min_size=10, max_size=10)


@pytest.mark.parametrize("end", [AttemptEnd.LOST, AttemptEnd.EXPIRED, AttemptEnd.RETURNED, AttemptEnd.CORRUPT])
@pytest.mark.parametrize("crashed_on", [[], ["a"], ["a", "a"]])
def test_lost_infrastructure_never_counts_against_a_job(end: AttemptEnd, crashed_on: list[str]) -> None:
    assert after(end, "gone", crashed_on) == Requeue()


def test_a_job_that_was_convicted_while_it_ran_elsewhere_is_not_tried_again_when_it_is_lost_there() -> None:
    assert isinstance(after(AttemptEnd.LOST, "gone", ["a", "b"]), Fail)


def test_a_job_that_crashed_once_is_tried_again() -> None:
    assert after(AttemptEnd.CRASHED, "boom", ["a"]) == Requeue()


def test_a_job_that_crashed_two_workers_fails_and_names_them() -> None:
    decision = after(AttemptEnd.CRASHED, "boom", ["b", "a"])
    assert isinstance(decision, Fail)
    assert decision.error.type == FailureType.ENGINE_ERROR
    assert decision.error.detail == "crashed 2 times, on a, b; last: boom"


def test_a_job_that_keeps_crashing_the_only_worker_fails_at_the_third_time() -> None:
    assert after(AttemptEnd.CRASHED, "boom", ["a", "a"]) == Requeue()
    assert isinstance(after(AttemptEnd.CRASHED, "boom", ["a", "a", "a"]), Fail)


def test_a_refused_job_fails_with_the_workers_words() -> None:
    decision = after(AttemptEnd.REFUSED, "3000 tokens; at most 2048", [])
    assert isinstance(decision, Fail)
    assert (decision.error.type, decision.error.detail) == ("invalid_request", "3000 tokens; at most 2048")


def test_a_cancelled_attempt_cancels_its_job() -> None:
    assert after(AttemptEnd.CANCELLED, "", []) == Cancel()


@given(moments, entropies)
def test_job_ids_have_the_contracts_shape(at_ms: int, entropy: bytes) -> None:
    job_id = ids.job_id(at_ms, entropy)
    assert re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", job_id)
    assert re.fullmatch(GENERATION_ID, f"{job_id}.1")


@given(st.tuples(moments, entropies), st.tuples(moments, entropies))
def test_ids_sort_as_the_moments_they_were_made(one: tuple[int, bytes], other: tuple[int, bytes]) -> None:
    assert (ids.ulid(*one) < ids.ulid(*other)) == (one < other)


@pytest.mark.parametrize(("at_ms", "entropy"), [(-1, bytes(10)), (2**48, bytes(10)), (0, bytes(9))])
def test_what_does_not_fit_a_ulid_is_an_error(at_ms: int, entropy: bytes) -> None:
    with pytest.raises(ValueError, match="ULID"):
        ids.ulid(at_ms, entropy)


@pytest.mark.parametrize(
    ("kind", "retryable", "end"),
    [
        (FailureType.INVALID_REQUEST, False, AttemptEnd.REFUSED),
        (FailureType.DRAINING, True, AttemptEnd.RETURNED),
        (FailureType.TOO_LARGE, True, AttemptEnd.RETURNED),
        (FailureType.CANCELLED, False, AttemptEnd.LOST),
        (FailureType.OUT_OF_MEMORY, True, AttemptEnd.CRASHED),
        (FailureType.ENGINE_ERROR, True, AttemptEnd.CRASHED),
        (FailureType.ENGINE_ERROR, False, AttemptEnd.REFUSED),
    ],
)
def test_each_failure_of_a_worker_ends_the_attempt_in_its_way(
    kind: FailureType, retryable: bool, end: AttemptEnd
) -> None:
    failed = Failed(id="job_x.1", type=kind, detail="why", retryable=retryable)
    assert (unmade_by(failed).end, unmade_by(failed).detail) == (end, "why")


@given(st.sampled_from([AttemptEnd.RETURNED, AttemptEnd.LOST, AttemptEnd.CRASHED]), st.integers(1, 10_000))
def test_a_worker_that_keeps_failing_is_tried_ever_more_rarely(end: AttemptEnd, failures: int) -> None:
    assert 0.5 <= pause_s(Outcome(end), failures) <= pause_s(Outcome(end), failures + 1) <= 15.0


@pytest.mark.parametrize("end", [AttemptEnd.FINISHED, AttemptEnd.CANCELLED, AttemptEnd.REFUSED, None])
def test_a_worker_that_did_well_gets_its_next_job_at_once(end: AttemptEnd | None) -> None:
    assert pause_s(Outcome(end), 1) == 0


def test_errors_say_what_to_believe_of_the_worker() -> None:
    assert belief_of(WorkerSilentError("silent")) == (WorkerHealth.UNREACHABLE, "silent")
    assert belief_of(WorkerUnauthorizedError("token")) == (WorkerHealth.BROKEN, "token")
    assert belief_of(WorkerProtocolError("babble")) == (WorkerHealth.BROKEN, "babble")
    assert belief_of(WorkerBusyError("busy")) is None
