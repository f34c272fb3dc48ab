"""The serverless worker as RunPod runs it: jobs from its queue, signals, checks; the queue is emulated."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.emulators.runpod_queue import RunPodQueue, runpod_queue
from tests.integration.worker.scripted_serverless import UNFIT
from tests.unit.worker.scripted import file_of
from tests.waiting import eventually
from worker.contract import GenerationRequest
from worker.settings import PREFIX

ROOT = Path(__file__).parents[3]
START_S = 60.0
KILL_S = 5.0
"""RunPod's, between SIGTERM and SIGKILL."""
SMALL = {"prompt": "three foxes", "width": 256, "height": 256, "steps": 3, "seed": 7}


@dataclass(frozen=True, slots=True)
class Worker:
    process: subprocess.Popen[bytes]
    log: Path

    def end(self) -> int:
        return self.process.wait(START_S)


@pytest.fixture
def queue() -> Iterator[RunPodQueue]:
    with runpod_queue() as running:
        yield running


@pytest.fixture
def start(queue: RunPodQueue, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers of the queue; all of them are gone when the test ends."""
    started: list[Worker] = []

    def start(**environment: str) -> Worker:
        log = tmp_path / f"{len(started)}.log"
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "RUNPOD_", "BUCKET_"))
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.integration.worker.scripted_serverless"],
                cwd=ROOT,
                env={**kept, **queue.environment, f"{PREFIX}CACHE_DIR": str(tmp_path), **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(Worker(process, log))
        return started[-1]

    yield start
    for worker in started:
        with suppress(ProcessLookupError):
            # The package's heartbeat is a process of its own, and may have outlived the worker.
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()


def test_a_job_is_made_told_of_and_answered(start: Callable[..., Worker], queue: RunPodQueue) -> None:
    worker = start()
    queue.add("job-1", SMALL | {"steps": 80})
    answer = queue.answer("job-1")
    made = answer["output"]
    wanted = GenerationRequest.model_validate(SMALL | {"steps": 80})
    assert base64.b64decode(made["image"]) == file_of(wanted)
    assert (made["seed"], made["media_type"], made["width"]) == (7, "image/png", 256)
    eventually(lambda: queue.progress.get("job-1"), 10, "progress was told")
    assert all(step["steps"] == 80 and 1 <= step["step"] <= 80 for step in queue.progress["job-1"])
    said = worker.log.read_text()
    assert "three foxes" not in said
    assert made["image"][:40] not in said


def test_what_cannot_be_an_image_fails_with_every_field_that_is_wrong(
    start: Callable[..., Worker], queue: RunPodQueue
) -> None:
    start()
    queue.add("job-1", SMALL | {"width": 250, "colour": "red"})
    error = queue.answer("job-1")["error"]
    assert "width: Input should be a multiple of 16" in error
    assert "colour: Extra inputs are not permitted" in error
    queue.add("job-2", "a fox")
    assert "describe the image" in queue.answer("job-2")["error"]


def test_a_crash_is_the_jobs_error_and_the_next_job_is_made(start: Callable[..., Worker], queue: RunPodQueue) -> None:
    worker = start()
    queue.add("job-1", SMALL | {"prompt": "crash"})
    answer = queue.answer("job-1")
    assert "ZeroDivisionError" in answer["error"]
    assert "secret" not in answer["error"]
    assert "stopPod" not in answer
    queue.add("job-2", SMALL)
    assert queue.answer("job-2")["output"]["image"]
    assert worker.process.poll() is None


def test_a_broken_device_has_runpod_replace_the_worker(start: Callable[..., Worker], queue: RunPodQueue) -> None:
    worker = start()
    queue.add("job-1", SMALL | {"prompt": "break"})
    answer = queue.answer("job-1")
    assert "illegal memory access" in answer["error"]
    assert answer["stopPod"] is True
    assert worker.end() == 70


def test_told_to_stop_it_answers_what_it_can_finish_and_leaves_in_time(
    start: Callable[..., Worker], queue: RunPodQueue
) -> None:
    worker = start()
    queue.add("job-1", SMALL | {"steps": 60})
    eventually(lambda: queue.progress.get("job-1"), START_S, "the job is under way")
    told_at = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    # Far below, but for a machine that does other things: RunPod would have killed it by then.
    assert time.monotonic() - told_at < KILL_S
    assert queue.answers["job-1"]["output"]["image"]


def test_what_cannot_be_finished_in_time_is_left_to_another_worker(
    start: Callable[..., Worker], queue: RunPodQueue
) -> None:
    worker = start(**{f"{PREFIX}CONCURRENCY": "2"})
    queue.add("job-1", SMALL | {"steps": 100, "seed": 1, "prompt": "slow"})
    queue.add("job-2", SMALL | {"steps": 100, "seed": 2})
    queue.add("job-3", SMALL | {"steps": 100, "seed": 3})
    eventually(lambda: queue.progress.get("job-1"), START_S, "the job is under way")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert "job-3" not in queue.answers
    second = start()
    assert queue.answer("job-3")["output"]["image"]
    assert second.process.poll() is None


def test_told_to_stop_while_idle_it_leaves_at_once(start: Callable[..., Worker], queue: RunPodQueue) -> None:
    worker = start()
    queue.add("job-1", SMALL)
    queue.answer("job-1")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_a_cancelled_job_stops_between_two_steps_and_makes_room(
    start: Callable[..., Worker], queue: RunPodQueue
) -> None:
    worker = start()
    queue.add("job-1", SMALL | {"steps": 100})
    eventually(lambda: queue.progress.get("job-1"), START_S, "the job is under way")
    queue.stop("job-1")
    queue.add("job-2", SMALL)
    assert queue.answer("job-2")["output"]["image"]
    assert "job-1" not in queue.answers
    assert '"outcome": "cancelled"' in worker.log.read_text()


def test_a_gpu_that_will_not_do_is_refused_before_any_job_is_taken(
    start: Callable[..., Worker], queue: RunPodQueue
) -> None:
    queue.add("job-1", SMALL)
    worker = start(**{UNFIT: "the driver serves CUDA up to 11.8"})
    assert worker.end() == 1
    assert any("CUDA+up+to+11.8" in told for told in queue.unhealthy)
    assert queue.answers == {}


def test_weights_that_cannot_be_loaded_are_told_to_runpod_and_take_no_job(
    start: Callable[..., Worker], queue: RunPodQueue
) -> None:
    queue.add("job-1", SMALL)
    worker = start(**{f"{PREFIX}MODEL": "owner/unloadable"})
    assert worker.end() == 1
    assert any("a+language+that+nobody+reads" in told for told in queue.unhealthy)
    assert queue.answers == {}
