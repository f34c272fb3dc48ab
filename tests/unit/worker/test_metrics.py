"""What a worker counts of its device: at work, idle for want of work, idle though there was some."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.metrics import Idle, Metrics, idle

moments = st.integers(0, 1000)


@given(ended=moments, accepted=moments, began=moments)
def test_the_two_kinds_of_idleness_make_up_the_gap(ended: int, accepted: int, began: int) -> None:
    accepted, began = min(accepted, began), max(ended, began)
    waited = idle(ended, accepted, began)
    assert waited.no_work + waited.not_ready == began - ended
    assert min(waited.no_work, waited.not_ready) >= 0


def test_what_was_accepted_in_time_leaves_no_want_of_work() -> None:
    assert idle(ended=10, accepted=5, began=11) == Idle(no_work=0, not_ready=1)
    assert idle(ended=10, accepted=14, began=15) == Idle(no_work=4, not_ready=1)


def test_they_are_counted_from_the_first_image_on() -> None:
    metrics = Metrics()
    for accepted, began, ended in ((0, 7, 10), (5, 11, 20), (24, 25, 30)):
        metrics.rendered(accepted, began, ended)
    text = metrics.text().decode()
    assert "letterpress_worker_rendering_seconds_total 17.0" in text
    assert 'letterpress_worker_idle_seconds_total{why="no_work"} 4.0' in text
    assert 'letterpress_worker_idle_seconds_total{why="not_ready"} 2.0' in text
