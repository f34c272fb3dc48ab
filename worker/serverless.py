"""`python -m worker.serverless`: the worker behind a RunPod queue, on RunPod's own package.

A job's input is the contract's request (a seed is drawn where none is given), plus `delivery`. The model is
loaded once, into the same runner that `python -m worker` serves.

What the package leaves to us: it waits up to 90 s for a next job before it notices a SIGTERM, and RunPod kills
after 5 s. So the signal is ours as well: what runs is finished if it can be within DRAIN_S, and whatever is not
is left without an answer, because RunPod gives a lost worker's job to another one and an answered one to nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any

import structlog

from worker import fitness, logs
from worker.__main__ import EXIT_BROKEN, EXIT_CONFIG, accept_license, make_engine
from worker.delivery import Bucket, Deliverer
from worker.engine import LoadError, MakeEngine
from worker.service import Answer, Job, Service
from worker.settings import TINY, EngineName, ServerlessSettings, SettingsError

Untyped = Any
"""Something of the package's, which is published without types."""

DRAIN_S = 4.0
"""RunPod kills 5 s after its SIGTERM; some of the last second is the last answer's."""
POLL_S = 0.05
REFERENCE_GIB = 18
"""What diffusers' own pipeline takes of a GPU's memory with the nf4 weights at 1024x1024."""
SQUARE = 1024 * 1024

log = structlog.get_logger(__name__)


class Ending:
    """Ends the process: in time after SIGTERM, and once the engine is broken and that was said."""

    def __init__(self, service: Service, config: dict[str, Untyped], in_progress: Callable[[], int]) -> None:
        self._service = service
        self._config = config
        self._in_progress = in_progress
        self._hooked = False

    def hook(self) -> None:
        """Come before the package's own answer to SIGTERM. It is called in the package's loop: then it has one."""
        if self._hooked:
            return
        self._hooked = True
        before = signal.getsignal(signal.SIGTERM)

        def told(number: int, frame: FrameType | None) -> None:
            log.info("told to stop", in_progress=self._in_progress())
            self._service.stopping.set()
            if callable(before):
                before(number, frame)  # takes no more jobs
            self._leave_after(DRAIN_S, 0)

        signal.signal(signal.SIGTERM, told)

    def when_broken(self) -> None:
        """Have RunPod replace this worker after the answer that says so."""
        self._config["refresh_worker"] = True
        self._leave_after(DRAIN_S, EXIT_BROKEN)

    def _leave_after(self, within_s: float, status: int) -> None:
        threading.Thread(target=self._leave, args=(within_s, status), name="ending", daemon=True).start()

    def _leave(self, within_s: float, status: int) -> None:
        deadline = time.monotonic() + within_s
        while self._in_progress() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        log.info("leaving", unfinished=self._in_progress(), status=status)
        sys.stdout.flush()
        # The package may be within a request that it waits 90 s for, and the engine within a call.
        os._exit(status)


class Package:
    """RunPod's package, imported and made to write where we write."""

    def __init__(self, settings: ServerlessSettings) -> None:
        os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # its default writes every job's input and output
        self._serverless: Untyped = import_module("runpod.serverless")
        state: Untyped = import_module("runpod.serverless.modules.worker_state")
        self.in_progress: Callable[[], int] = state.JobsProgress().get_job_count
        self.local = "RUNPOD_WEBHOOK_GET_JOB" not in os.environ
        """Whether it serves somebody who tries it out: then it knows no fitness checks and no progress."""
        logs.configure(settings.log_level, settings.log_format)  # again: it sets up logging when it is imported

    def require(self, check: Callable[[], Untyped]) -> None:
        """Have `check`, plain or a coroutine function, pass before any job is taken; RunPod is told what it raises."""
        self._serverless.register_fitness_check(check)

    def report(self, job: Job, step: dict[str, int]) -> None:
        if not self.local:
            self._serverless.progress_update(job, step)

    def start(self, config: dict[str, Untyped]) -> None:
        """Returns, if at all, when it was told to stop."""
        self._serverless.start(config)


def run(make: MakeEngine, settings: ServerlessSettings, bucket: Bucket, unfit: str | None) -> None:
    """Hand the process to RunPod's package."""
    package = Package(settings)
    if unfit:
        _refuse(package, unfit)
        return
    service = Service(make, settings, Deliverer(bucket, settings.max_inline_bytes))

    async def model() -> None:
        if error := await service.loaded():
            raise RuntimeError(str(error))

    package.require(model)
    config: dict[str, Untyped] = {}
    ending = Ending(service, config, package.in_progress)

    def concurrency(_: int) -> int:
        ending.hook()
        return settings.concurrency

    async def handler(job: Job) -> Answer:
        answer = await service.handle(job, partial(package.report, job))
        if answer.get("refresh_worker") and not package.local:
            ending.when_broken()
        return answer

    config |= {"handler": handler, "concurrency_modifier": concurrency}
    package.start(config)


def _refuse(package: Package, unfit: str) -> None:
    """On RunPod the fitness check says it, and RunPod takes another host. Elsewhere nobody runs the checks."""
    if package.local:
        raise SettingsError(unfit)

    def gpu() -> None:
        raise RuntimeError(unfit)

    package.require(gpu)
    package.start({"handler": lambda _: {"error": unfit}})


def why_unfit(settings: ServerlessSettings) -> str | None:
    """None where the GPU will do, or none is needed."""
    if settings.device == "cpu" or settings.model == TINY:
        return None
    device = settings.device if settings.device != "auto" else "cuda:0"
    return fitness.unfit(fitness.look(device), fitness.needs(memory_wanted(settings)))


def memory_wanted(settings: ServerlessSettings) -> int:
    """Bytes that a GPU has to have, as it is set or as the engine and its tier want at least."""
    if settings.gpu_memory_gib is not None:
        return int(settings.gpu_memory_gib * fitness.GIB)
    if settings.engine is EngineName.REFERENCE:
        return REFERENCE_GIB * fitness.GIB
    from worker.engine.memory import least  # noqa: PLC0415 - imports torch

    return int(least(settings.tier, SQUARE))


def main() -> int:
    try:
        settings = ServerlessSettings.from_environment()
        bucket = Bucket.from_environment()
        logs.configure(settings.log_level, settings.log_format)
        accept_license(settings)
        run(partial(make_engine, settings), settings, bucket, why_unfit(settings))
    except (SettingsError, LoadError) as error:
        print(f"worker: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
