"""One runner for jobs that come from elsewhere than HTTP: parsed, made, handed over, in a loop of its own.

The runner's event loop lives in a thread here, so that whoever brings the jobs may start and end loops as it
pleases. RunPod's queue is `worker.serverless`; nothing here knows of it.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.__main__ import make_runner
from worker.contract import MAX_SEED, Failed, GenerationRequest, Step
from worker.delivery import Deliverer, Delivery, DeliveryError
from worker.engine import MakeEngine
from worker.failures import RunnerError
from worker.faults import faults
from worker.generation import Generation
from worker.metrics import Metrics
from worker.runner import Runner
from worker.settings import EngineSettings

T = TypeVar("T")
Job = dict[str, Any]
"""`id` and `input`, as they came."""
Answer = dict[str, Any]
"""What a job is answered with. With the key `error` it failed; with `refresh_worker` only a new process helps."""
Report = Callable[[dict[str, int]], None]
"""Told now and then how many of its steps a job has done."""

PLACES = 2
"""The runner's own: one running, one accepted."""
PROGRESS_S = 1.0
"""Between two reports of a job: each may be a request to somebody."""


class JobInput(BaseModel):
    """What a job's input says beside the contract's request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    delivery: Delivery = Delivery.AUTO


def parsed(given: object, draw_seed: Callable[[], int]) -> tuple[GenerationRequest, Delivery]:
    """Raises ValueError; its message names each field that is wrong and what it should be."""
    if not isinstance(given, dict):
        raise ValueError('input: describe the image, as in {"prompt": "a fox"}')  # noqa: TRY004 - it is a value
    fields = {name: value for name, value in given.items() if name != "delivery"}
    if fields.get("seed") is None:
        fields["seed"] = draw_seed()
    try:
        delivery = JobInput.model_validate(given).delivery
        return GenerationRequest.model_validate(fields), delivery
    except ValidationError as error:
        raise ValueError("; ".join(faults(error))) from None


class Service:
    """One runner in a loop and a thread of its own; handlers of any other loop give it jobs."""

    def __init__(self, make: MakeEngine, settings: EngineSettings, deliverer: Deliverer) -> None:
        self._settings = settings
        self._deliverer = deliverer
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self._holding: set[asyncio.Task[None]] = set()
        self.jobs = 0
        """How many are being worked on."""
        self.stopping = threading.Event()
        threading.Thread(target=self._loop.run_forever, name="worker", daemon=True).start()
        self._runner, self._places, self._loaded = self._submit(self._begin()).result()

    async def _begin(self) -> tuple[Runner, asyncio.Semaphore, asyncio.Task[BaseException | None]]:
        runner = make_runner(self._make, self._settings, Metrics())
        return runner, asyncio.Semaphore(PLACES), self._loop.create_task(runner.load())

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def loaded(self) -> BaseException | None:
        """Wait until the model is; the error, if it could not be."""
        return await asyncio.wrap_future(self._submit(self._until_loaded()))

    async def _until_loaded(self) -> BaseException | None:
        return await self._loaded

    @property
    def broken(self) -> bool:
        """Whether only a new process helps."""
        return self._runner.broken.is_set()

    async def handle(self, job: Job, report: Report) -> Answer:
        """The job's answer. Cancelling this cancels the job between two steps."""
        return await asyncio.wrap_future(self._submit(self._work(job, report)))

    async def _work(self, job: Job, report: Report) -> Answer:
        try:
            request, delivery = parsed(job.get("input"), lambda: secrets.randbelow(MAX_SEED + 1))
        except ValueError as error:
            return {"error": str(error)}
        self.jobs += 1
        try:
            return await self._made(str(job.get("id", "")), request, delivery, report)
        except RunnerError as error:
            return self._failed(str(error))
        except DeliveryError as error:
            return {"error": str(error)}
        finally:
            self.jobs -= 1

    async def _made(self, job_id: str, request: GenerationRequest, delivery: Delivery, report: Report) -> Answer:
        if error := await asyncio.shield(self._loaded):
            return self._failed(str(error))
        generation = await self._begun(f"{slug(job_id)}.{next(self._numbers)}", request)
        try:
            reported_at = -PROGRESS_S
            async for event in generation.follow(heartbeat_s=60.0):
                if isinstance(event, Step) and time.monotonic() - reported_at >= PROGRESS_S:
                    reported_at = time.monotonic()
                    report({"step": event.step, "steps": event.steps})
        except asyncio.CancelledError:
            self._runner.cancel(generation.id)
            raise
        end = generation.end
        if end is None or isinstance(end, Failed):
            return self._failed(end.detail if end else "the generation was left without an end")
        data = self._runner.image(generation.id)
        handed_over = await self._deliverer.deliver(generation.id, data, request.format, delivery)
        answer: Answer = end.model_dump(mode="json", exclude={"event", "id"})
        return answer | handed_over

    async def _begun(self, generation_id: str, request: GenerationRequest) -> Generation:
        """Wait for a place and begin in it."""
        await self._places.acquire()
        try:
            if self.stopping.is_set():
                await asyncio.Event().wait()  # left to another worker: this process ends in a moment
            generation = self._runner.put(generation_id, request)
        except BaseException:
            self._places.release()
            raise
        holding = asyncio.create_task(self._hold(generation))
        self._holding.add(holding)
        holding.add_done_callback(self._holding.discard)
        return generation

    async def _hold(self, generation: Generation) -> None:
        """Keep the place until the runner's is free, which for a job that is cancelled is a step later than its end."""
        try:
            async for _ in generation.follow(heartbeat_s=60.0):
                pass
        finally:
            self._places.release()

    def _failed(self, why: str) -> Answer:
        refresh = {"refresh_worker": True} if self.broken else {}
        return {"error": why, **refresh}


def slug(job_id: str) -> str:
    """The job's id as the part of a generation's id that it may be."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", job_id)[-64:] or "job"
