"""A key's rate, and how long a job will wait: pure values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.rate import span
from router.limits import Bucket, Share, predicted_wait_s, take
from router.outlook import UNKNOWN_S, Outlook
from router.pace import Pace

PACE = Pace(0.0, 1.0)
"""A second for a unit of work."""


@given(st.integers(1, 600), st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_no_window_lets_more_through_than_the_rate_and_one_bucket(per_minute: int, pauses: list[int]) -> None:
    bucket: Bucket | None = None
    now, passed = 0, 0
    for pause in pauses:
        now += pause
        taken = take(bucket, per_minute, now)
        bucket = taken.bucket
        passed += taken.retry_after_s is None
        assert 0 <= taken.rate.remaining <= per_minute
    assert passed <= per_minute + now * per_minute / 60_000


@given(st.integers(1, 600), st.lists(st.integers(0, 300), min_size=1, max_size=700))
def test_who_waits_as_long_as_told_passes_and_a_second_less_would_not_do(per_minute: int, pauses: list[int]) -> None:
    bucket: Bucket | None = None
    now = 0
    for pause in pauses:
        now += pause
        taken = take(bucket, per_minute, now)
        bucket = taken.bucket
        if taken.retry_after_s is not None:
            assert take(bucket, per_minute, now + taken.retry_after_s * 1000).retry_after_s is None
            if taken.retry_after_s > 1:
                assert take(bucket, per_minute, now + (taken.retry_after_s - 1) * 1000 - 1).retry_after_s is not None


def test_a_clock_that_goes_back_neither_gives_nor_takes() -> None:
    taken = take(Bucket(5.0, 10_000), 10, 0)
    assert taken.bucket == Bucket(4.0, 10_000)


@pytest.mark.parametrize(("seconds", "said"), [(0, "0s"), (0.2, "1s"), (59.5, "1m0s"), (360, "6m0s"), (61, "1m1s")])
def test_spans_are_written_as_openai_does(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_a_batch_of_another_key_is_ahead_by_one_turn_each_and_ones_own_jobs_by_all() -> None:
    batch = Share(50_000, 50_000)
    assert predicted_wait_s(Share(0, 0), [batch], Share(0, 0), 1, PACE) == 1.0
    assert predicted_wait_s(Share(9, 9), [batch], Share(0, 0), 1, PACE) == 19.0
    assert predicted_wait_s(Share(9, 9), [batch], Share(0, 0), 19, PACE) == 1.0


def test_nobody_waits_for_a_worker_that_is_free() -> None:
    assert predicted_wait_s(Share(0, 0), [], Share(1, 8), 2, PACE) == 0.0
    assert predicted_wait_s(Share(0, 0), [], Share(2, 8), 2, PACE) == 2.0, "half of what runs is left, on two workers"


@given(st.integers(0, 100), st.lists(st.integers(0, 1000), max_size=5), st.integers(0, 8), st.integers(1, 8))
def test_more_before_one_is_never_a_shorter_wait(mine: int, others: list[int], running: int, workers: int) -> None:
    def wait(own: int, of_others: list[int]) -> float:
        return predicted_wait_s(
            Share(own, own), [Share(n, n) for n in of_others], Share(running, running), workers, PACE
        )

    assert wait(mine, others) <= wait(mine + 1, others)
    assert wait(mine, others) <= wait(mine, [*others, 1])


def test_where_nothing_is_known_a_fixed_time_is_told() -> None:
    nothing = Outlook({}, Share(0, 0), 0, None)
    assert nothing.wait_s("key") is None
    assert nothing.room_s("key") == UNKNOWN_S
    known = Outlook({"a": Share(10, 20), "b": Share(5, 10)}, Share(1, 2), 4, PACE)
    assert known.room_s(None) == 1
    assert known.room_s(None, 8) == 4
    assert known.room_s("a", 8) == 8, "every second turn is another's"
