"""A worker process whose device fails on every image after the first: everything else is the real one."""

from __future__ import annotations

import asyncio
import socket
import sys

from tests.unit.worker.scripted import DESCRIPTION, rendered
from worker import logs
from worker.__main__ import serve
from worker.contract import GenerationRequest
from worker.engine import Description, EngineBrokenError, OnStage, OnStep, Prepared, Rendered, Stop
from worker.settings import Settings
from worker.stages import WARM_UP


class BreakingEngine:
    def load(self, on_stage: OnStage) -> Description:
        on_stage("pretending")
        return DESCRIPTION

    def prepare(self, request: GenerationRequest) -> Prepared:
        return Prepared(request=request, payload=None, text=0.0)

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:  # noqa: ARG002
        if prepared.request == WARM_UP:
            return rendered(prepared.request)
        on_step(1)
        raise EngineBrokenError("CUDA error: an illegal memory access was encountered")


if __name__ == "__main__":
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    listener = socket.create_server((settings.host, settings.port))
    sys.exit(asyncio.run(serve(BreakingEngine, settings, settings.read_token(), listener)))
