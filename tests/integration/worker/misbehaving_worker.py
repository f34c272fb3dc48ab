"""A worker process whose engine does whatever its prompt says; everything else is the real one.

A prompt is a `Fault` and where it happens, as in `hang in render`, or anything else: then an image is made.
What happens while it loads stands in MISBEHAVES, e.g. MISBEHAVES="hang in load".
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
import threading
from enum import StrEnum
from typing import Any

from PIL import Image

from tests.unit.worker.scripted import DESCRIPTION, rendered
from worker import logs
from worker.__main__ import serve
from worker.contract import GenerationRequest
from worker.engine import (
    Description,
    EngineBrokenError,
    InUseError,
    NoRoomError,
    OnStage,
    OnStep,
    OutOfMemoryError,
    Prepared,
    Rendered,
    Stop,
    StoppedError,
)
from worker.presets import sampling
from worker.settings import Settings

STEP_S = 0.02
FOR_EVER_S = 3600


class Fault(StrEnum):
    OUT_OF_MEMORY = "out of memory"
    CUDA_ERROR = "CUDA error"
    HANG = "hang"
    NO_ROOM = "no room"  # for a kernel that is built
    IN_USE = "in use"  # the GPU's memory
    SEIZE = "seize"  # hangs with the interpreter's lock in its hand


def _misbehave(said: str, where: str) -> None:
    if not said.endswith(f" in {where}"):
        return
    match Fault(said.removesuffix(f" in {where}")):
        case Fault.OUT_OF_MEMORY:
            raise OutOfMemoryError("the memory did not suffice: CUDA out of memory")
        case Fault.CUDA_ERROR:
            raise EngineBrokenError("CUDA error: an illegal memory access was encountered")
        case Fault.NO_ROOM:
            raise NoRoomError("/cache/kernels/card: kernels cannot be kept there (No space left on device)")
        case Fault.IN_USE:
            raise InUseError("20 GiB are free; the rest was in use for 60 s, held by process 7")
        case Fault.HANG:
            threading.Event().wait(FOR_EVER_S)
        case Fault.SEIZE:
            ctypes.PyDLL(None).sleep(FOR_EVER_S)


class _Image(Image.Image):
    """Misbehaves when it becomes a file."""

    def __init__(self, image: Image.Image, said: str) -> None:
        super().__init__()
        self._im, self._mode, self._size = image.im, image.mode, image.size
        self._said = said

    # Pillow's signature.
    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002, ANN401
        _misbehave(self._said, "encode")
        super().save(fp, format, **params)


class MisbehavingEngine:
    def load(self, on_stage: OnStage) -> Description:
        on_stage("pretending")
        _misbehave(os.environ.get("MISBEHAVES", ""), "load")
        return DESCRIPTION

    def prepare(self, request: GenerationRequest) -> Prepared:
        _misbehave(request.text, "prepare")
        return Prepared(request=request, payload=None, text=0.0)

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        for step in range(1, sampling(prepared.request).steps + 1):
            if stop():
                raise StoppedError("stopped")
            threading.Event().wait(STEP_S)
            on_step(step)
            _misbehave(prepared.request.text, "render")
        image = _Image(rendered(prepared.request).image, prepared.request.text)
        return Rendered(image=image, denoise=0.0, decode=0.0)


if __name__ == "__main__":
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    listener = socket.create_server((settings.host, settings.port))
    sys.exit(asyncio.run(serve(MisbehavingEngine, settings, settings.read_token(), listener)))
