"""A worker process whose device fails on every image after the first: everything else is the real one."""

from __future__ import annotations

import asyncio
import socket
import sys

from tests.unit.worker.scripted import DESCRIPTION, picture
from worker import logs
from worker.__main__ import serve
from worker.contract import GenerationRequest
from worker.engine import Description, EngineBrokenError, OnStage, OnStep, Picture, Stop
from worker.runner import WARM_UP
from worker.settings import Settings


class BreakingEngine:
    def load(self, on_stage: OnStage) -> Description:
        on_stage("pretending")
        return DESCRIPTION

    def generate(self, request: GenerationRequest, on_step: OnStep, stop: Stop) -> Picture:  # noqa: ARG002
        if request == WARM_UP:
            return picture(request)
        on_step(1)
        raise EngineBrokenError("CUDA error: an illegal memory access was encountered")


if __name__ == "__main__":
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    listener = socket.create_server((settings.host, settings.port))
    sys.exit(asyncio.run(serve(BreakingEngine, settings, settings.read_token(), listener)))
