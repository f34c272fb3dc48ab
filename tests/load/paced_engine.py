"""A worker process whose engine only takes its time: `python -m tests.load.paced_engine`.

A step in tenths of a real one's, text and decoding in proportion; the file is written for real, from noise.
The parts wait rather than compute, as a CPU does for a GPU.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import time

from PIL import Image

from worker import logs
from worker.__main__ import serve
from worker.contract import GenerationRequest
from worker.engine import Description, OnStage, OnStep, Prepared, Rendered, Stop, StoppedError
from worker.presets import sampling
from worker.settings import Settings

STEP_S = 0.016
TEXT_S = 0.03
DECODE_S = 0.009


class PacedEngine:
    def load(self, on_stage: OnStage) -> Description:
        on_stage("pretending")
        return Description(model="paced", engine="paced", device="none")

    def prepare(self, request: GenerationRequest) -> Prepared:
        time.sleep(TEXT_S)
        return Prepared(request=request, payload=None, text=TEXT_S)

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        request, begun = prepared.request, time.monotonic()
        for step in range(1, sampling(request).steps + 1):
            time.sleep(STEP_S)
            on_step(step)
            if stop():
                raise StoppedError("stopped")
        denoised = time.monotonic()
        time.sleep(DECODE_S)
        # One row of noise all the way down: cheap to make, and no PNG becomes small of it at this level.
        row = random.Random(request.seed).randbytes(request.width * 3)
        image = Image.frombytes("RGB", (request.width, request.height), row * request.height)
        return Rendered(image=image, denoise=denoised - begun, decode=DECODE_S)


if __name__ == "__main__":
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    listener = socket.create_server((settings.host, settings.port))
    sys.exit(asyncio.run(serve(PacedEngine, settings, settings.read_token(), listener)))
