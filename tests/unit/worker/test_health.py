"""What moves a worker's state."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from worker.contract import FailureType, WorkerState
from worker.health import MAX_TROUBLE, Health

READY = Health().loading("half way").loaded()
TROUBLE = (FailureType.OUT_OF_MEMORY, FailureType.ENGINE_ERROR)
HARMLESS = (FailureType.CANCELLED, FailureType.INVALID_REQUEST, FailureType.TOO_LARGE, FailureType.DRAINING)

moves = st.sampled_from(
    [
        lambda h: h.loading("loading"),
        Health.loaded,
        Health.succeeded,
        lambda h: h.draining("told"),
        lambda h: h.broken("gone"),
        *(lambda h, f=f: h.failed(f, "failed") for f in FailureType),
    ]
)


def test_loading_says_its_stage_and_ready_says_nothing() -> None:
    assert (Health().loading("half way").reason, READY.state, READY.reason) == ("half way", WorkerState.READY, "")


@given(st.lists(moves, max_size=12))
def test_states_only_move_forward(path: list[Callable[[Health], Health]]) -> None:
    order = list(WorkerState)
    health = Health()
    for move in path:
        before, health = health, move(health)
        assert order.index(before.state) <= order.index(health.state)
        assert (health.reason == "") == (health.state is WorkerState.READY)


@given(st.lists(st.sampled_from([*FailureType, None]), max_size=20))
def test_it_breaks_exactly_when_trouble_comes_twice_without_an_image_between(ends: list[FailureType | None]) -> None:
    health, row, broke = READY, 0, False
    for end in ends:
        health = health.succeeded() if end is None else health.failed(end, "it failed")
        row = 0 if end is None else row + (end in TROUBLE)
        broke = broke or row >= MAX_TROUBLE
        assert (health.state is WorkerState.BROKEN) == broke


def test_a_broken_worker_says_what_broke_it_first() -> None:
    assert READY.broken("the GPU fell off").broken("later").draining("told").reason == "the GPU fell off"
