"""A real worker process whose engine misbehaves as its prompts say."""

from __future__ import annotations

from tests.integration.worker.process import Running, Start
from worker.contract import GenerationRequest, WorkerState

MODULE = "tests.integration.worker.misbehaving_worker"


def ready(start: Start, **settings: str) -> Running:
    worker = start(MODULE, **settings)
    worker.wait_until(WorkerState.READY)
    return worker


def asking_for(prompt: str, *, seed: int = 1, steps: int = 2) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, width=256, height=256, steps=steps, seed=seed)
