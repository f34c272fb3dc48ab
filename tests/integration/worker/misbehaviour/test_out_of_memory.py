"""Out of memory once is bad luck; twice in a row, and the device is not trusted any more."""

from __future__ import annotations

from tests.integration.worker.misbehaviour.rig import MODULE, asking_for, ready
from tests.integration.worker.process import START_S, Start, made
from worker.contract import Failed, FailureType, Finished, WorkerState


def test_once_fails_that_generation_and_the_worker_goes_on(start: Start) -> None:
    worker = ready(start)
    for stage in ("prepare", "render", "encode"):
        failed = made(worker, f"{stage}.1", asking_for(f"out of memory in {stage}"))
        assert isinstance(failed, Failed)
        assert (failed.type, failed.retryable) == (FailureType.OUT_OF_MEMORY, True)
        assert isinstance(made(worker, f"{stage}.2", asking_for("a fox")), Finished)
    status = worker.status()
    assert status
    assert status.state is WorkerState.READY


def test_twice_in_a_row_breaks_the_worker_and_ends_it_with_70(start: Start) -> None:
    worker = ready(start)
    for number, stage in ((1, "prepare"), (2, "render")):
        failed = made(worker, f"a.{number}", asking_for(f"out of memory in {stage}"))
        assert isinstance(failed, Failed)
        assert failed.type is FailureType.OUT_OF_MEMORY
    assert worker.end() == 70
    assert "2 generations in a row failed; the last: the memory did not suffice" in worker.log.read_text()


def test_memory_that_others_hold_while_it_loads_ends_it_with_70_so_that_its_unit_tries_again(start: Start) -> None:
    worker = start(MODULE, environment={"MISBEHAVES": "in use in load"})
    assert worker.end(START_S) == 70
    assert "held by process 7" in worker.log.read_text()
