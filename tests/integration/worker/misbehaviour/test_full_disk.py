"""No room left where the worker writes: its log, and the cache of what it loads."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.worker.misbehaviour.rig import MODULE, asking_for, ready
from tests.integration.worker.process import START_S, Start, made
from worker.contract import Failed, FailureType, Finished, WorkerState


def test_a_log_that_takes_nothing_costs_no_image_and_changes_no_exit_status(start: Start) -> None:
    worker = ready(start, log="/dev/full")
    end = made(worker, "a.1", asking_for("a fox"))
    assert isinstance(end, Finished)
    assert len(worker.http.get("/generations/a.1/image").content) == end.bytes
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_a_broken_worker_without_a_log_still_ends_with_70(start: Start) -> None:
    worker = ready(start, log="/dev/full")
    assert isinstance(made(worker, "a.1", asking_for("CUDA error in render")), Failed)
    assert worker.end() == 70


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_cache_without_room_ends_it_with_78_and_names_the_folder(start: Start, small_disk: Path) -> None:
    worker = start(cache_dir=str(small_disk), device="cpu")
    assert worker.end(START_S) == 78
    said = json.loads(worker.log.read_text().splitlines()[-1])
    assert said["event"] == "broken"
    assert f"{small_disk}" in said["reason"]
    assert "No space left on device" in said["reason"]
    assert "LETTERPRESS_WORKER_CACHE_DIR" in said["reason"]


def test_no_room_for_kernels_while_it_loads_ends_it_with_78_and_names_the_folder(start: Start) -> None:
    worker = start(MODULE, environment={"MISBEHAVES": "no room in load"})
    assert worker.end(START_S) == 78
    assert (
        "/cache/kernels/card: kernels cannot be kept" in json.loads(worker.log.read_text().splitlines()[-1])["reason"]
    )


def test_no_room_for_a_kernel_at_work_fails_that_image_by_name_and_the_next_one_is_made(start: Start) -> None:
    worker = ready(start)
    end = made(worker, "a.1", asking_for("no room in render"))
    assert isinstance(end, Failed)
    assert (end.type, end.retryable) == (FailureType.ENGINE_ERROR, True)
    assert "/cache/kernels/card" in end.detail
    assert isinstance(made(worker, "b.1", asking_for("a fox")), Finished)
    worker.wait_until(WorkerState.READY)
