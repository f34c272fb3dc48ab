"""A call that never returns: no step, no stage, and heartbeats all the while."""

from __future__ import annotations

import json

import pytest

from tests.integration.worker.misbehaviour.rig import MODULE, asking_for, ready
from tests.integration.worker.process import Start, following, made
from worker.contract import EVENT, Failed, FailureType, Started

STALL_S = 3.0
"""Long enough for a busy machine to write a file of 256x256 in."""


@pytest.mark.parametrize("stage", ["prepare", "encode"])
def test_it_is_given_up_after_its_patience_and_the_process_ends_with_70(start: Start, stage: str) -> None:
    worker = ready(start, stall_s=str(STALL_S))
    end = made(worker, "a.1", asking_for(f"hang in {stage}"))
    assert isinstance(end, Failed)
    assert (end.type, end.retryable) == (FailureType.ENGINE_ERROR, True)
    assert f"the {stage} stage gave no sign of life for 3 s" in end.detail
    assert worker.end() == 70
    said = [json.loads(line) for line in worker.log.read_text().splitlines()]
    (hangs,) = [line for line in said if line["event"] == "hangs"]
    assert "misbehaving_worker.py" in hangs["where"]


def test_what_waits_behind_it_goes_back_without_blame(start: Start) -> None:
    worker = ready(start, stall_s=str(STALL_S))
    with following(worker, "a.1", asking_for("hang in render")) as lines:
        next(line for line in lines if isinstance(EVENT.validate_json(line), Started))
        end = made(worker, "b.1", asking_for("a fox"))
        hung = EVENT.validate_json(list(lines)[-1])
    assert isinstance(end, Failed)
    assert (end.type, end.retryable) == (FailureType.DRAINING, True)
    assert isinstance(hung, Failed)
    assert "the render stage gave no sign of life" in hung.detail
    assert worker.end() == 70


def test_loading_has_a_patience_of_its_own(start: Start) -> None:
    worker = start(MODULE, environment={"MISBEHAVES": "hang in load"}, load_stall_s=str(STALL_S))
    assert worker.end() == 70
    assert "the load stage gave no sign of life" in worker.log.read_text()


def test_a_worker_that_hangs_altogether_says_where_and_ends_with_1(start: Start) -> None:
    worker = ready(start, stall_s=str(STALL_S))
    worker.http.timeout = 1
    with pytest.raises(Exception, match=r"timed out|disconnected|reset|peer closed"):
        made(worker, "a.1", asking_for("seize in render"))
    assert worker.end() == 1
    assert "_misbehave" in worker.log.read_text()
