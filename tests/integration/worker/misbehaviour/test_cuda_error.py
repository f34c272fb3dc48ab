"""A device that reports an error once reports nothing but errors from then on."""

from __future__ import annotations

from tests.integration.worker.misbehaviour.rig import MODULE, asking_for, ready
from tests.integration.worker.process import Start, following, made
from worker.contract import EVENT, Failed, FailureType, Step


def test_it_is_told_to_whoever_follows_and_ends_the_process_with_70(start: Start) -> None:
    worker = ready(start)
    end = made(worker, "a.1", asking_for("CUDA error in render"))
    assert isinstance(end, Failed)
    assert (end.type, end.retryable) == (FailureType.ENGINE_ERROR, True)
    assert "illegal memory access" in end.detail
    assert worker.end() == 70


def test_what_ran_beside_it_goes_back_without_blame(start: Start) -> None:
    worker = ready(start)
    with following(worker, "a.1", asking_for("a fox", steps=100)) as lines:
        next(line for line in lines if isinstance(EVENT.validate_json(line), Step))
        blamed = made(worker, "b.1", asking_for("CUDA error in prepare"))
        assert isinstance(blamed, Failed)
        assert blamed.type is FailureType.ENGINE_ERROR
        end = EVENT.validate_json(list(lines)[-1])
    assert isinstance(end, Failed)
    assert (end.type, end.retryable) == (FailureType.DRAINING, True)
    assert worker.end() == 70


def test_while_loading_it_ends_the_process_with_70(start: Start) -> None:
    worker = start(MODULE, environment={"MISBEHAVES": "CUDA error in load"})
    assert worker.end() == 70
    assert "illegal memory access" in worker.log.read_text()
