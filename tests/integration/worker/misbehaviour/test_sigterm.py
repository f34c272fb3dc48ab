"""Told to stop in the midst of its work."""

from __future__ import annotations

import signal
import time

from tests.integration.worker.misbehaviour.rig import asking_for, ready
from tests.integration.worker.process import START_S, Running, Start, following
from worker.__main__ import COLLECT_S
from worker.contract import EVENT, Failed, FailureType, Finished, Step, WorkerState


def in_mid_image(lines: object, worker: Running) -> None:
    next(line for line in iter(lines) if isinstance(EVENT.validate_json(line), Step))  # type: ignore[call-overload]
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_until(WorkerState.DRAINING)


def test_the_image_is_finished_and_fetched_and_the_process_ends_with_0(start: Start) -> None:
    worker = ready(start)
    with following(worker, "a.1", asking_for("a fox", steps=50)) as lines:
        in_mid_image(lines, worker)
        end = EVENT.validate_json(list(lines)[-1])
    assert isinstance(end, Finished)
    assert len(worker.http.get("/generations/a.1/image").content) == end.bytes
    assert worker.end() == 0


def test_an_image_that_nobody_fetches_is_held_for_its_seconds_and_no_longer(start: Start) -> None:
    worker = ready(start)
    with following(worker, "a.1", asking_for("a fox", steps=50)) as lines:
        in_mid_image(lines, worker)
        stopped_at = time.monotonic()
        assert isinstance(EVENT.validate_json(list(lines)[-1]), Finished)
    assert worker.end(START_S) == 0
    assert time.monotonic() - stopped_at >= COLLECT_S


def test_what_cannot_start_within_the_grace_goes_back_without_blame(start: Start) -> None:
    worker = ready(start, drain_grace_s="0")
    with (
        following(worker, "a.1", asking_for("a fox", steps=100)) as lines,
        following(worker, "b.1", asking_for("a hen")) as others,
    ):
        next(others)
        in_mid_image(lines, worker)
        returned = EVENT.validate_json(list(others)[-1])
        assert isinstance(returned, Failed)
        assert (returned.type, returned.retryable) == (FailureType.DRAINING, True)
        assert isinstance(EVENT.validate_json(list(lines)[-1]), Finished)
    worker.http.get("/generations/a.1/image")
    assert worker.end() == 0


def test_twice_ends_it_at_once_with_70(start: Start) -> None:
    worker = ready(start)
    with following(worker, "a.1", asking_for("a fox", steps=100)) as lines:
        in_mid_image(lines, worker)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 70


def test_a_worker_that_hangs_ends_with_70_however_long_it_would_drain(start: Start) -> None:
    worker = ready(start, stall_s="3")
    with following(worker, "a.1", asking_for("hang in render")) as lines:
        in_mid_image(lines, worker)
        assert isinstance(EVENT.validate_json(list(lines)[-1]), Failed)
    assert worker.end() == 70


def test_a_device_that_fails_while_it_drains_ends_it_with_70(start: Start) -> None:
    worker = ready(start)
    with following(worker, "a.1", asking_for("a fox", steps=20)) as lines:
        made_beside = following(worker, "b.1", asking_for("CUDA error in render"))
        with made_beside as others:
            next(others)
            in_mid_image(lines, worker)
            assert isinstance(EVENT.validate_json(list(others)[-1]), Failed)
    assert worker.end() == 70
