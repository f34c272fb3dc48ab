"""A serverless worker process whose engine does what the prompt says: everything else is the real one.

    crash        the engine raises what nobody foresaw
    break        the device cannot be trusted any more
    unloadable   (as the model) the weights cannot be loaded

Any other prompt is drawn, at PACE_S a step.
"""

from __future__ import annotations

import os
import time

from tests.unit.worker.scripted import DESCRIPTION, rendered
from worker import logs
from worker.contract import GenerationRequest
from worker.delivery import Bucket
from worker.engine import (
    Description,
    EngineBrokenError,
    LoadError,
    OnStage,
    OnStep,
    Prepared,
    Rendered,
    Stop,
    StoppedError,
)
from worker.serverless import run
from worker.settings import ServerlessSettings

PACE_S = 0.02
UNFIT = "UNFIT"
"""The variable that makes this machine's GPU one that will not do, and says why."""


class PromptedEngine:
    def load(self, on_stage: OnStage) -> Description:
        on_stage("pretending")
        if ServerlessSettings.from_environment().model == "owner/unloadable":
            raise LoadError("the weights are in a language that nobody reads")
        return DESCRIPTION

    def prepare(self, request: GenerationRequest) -> Prepared:
        return Prepared(request=request, payload=None, text=0.0)

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        request = prepared.request
        if request.prompt == "crash":
            raise ZeroDivisionError("by a secret")
        if request.prompt == "break":
            raise EngineBrokenError("CUDA error: an illegal memory access was encountered")
        for step in range(request.steps or 1):
            time.sleep(PACE_S)
            on_step(step + 1)
            if stop():
                raise StoppedError(f"stopped after step {step + 1}")
        return rendered(request)


if __name__ == "__main__":
    settings = ServerlessSettings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    run(PromptedEngine, settings, Bucket.from_environment(), os.environ.get(UNFIT))
