"""Engines turn a request into an image. One protocol; `worker.runner` drives whichever was configured.

An engine is plain and synchronous: it is imported, made and called by one thread, one call at a time,
`load` first, so its module may import torch at its top. It
knows nothing of HTTP, ids, queues or other requests. `worker.engine.reference` is diffusers' own
pipeline; what is faster comes beside it and is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from worker.contract import GenerationRequest


class EngineError(Exception):
    """The root of what an engine raises on purpose. Anything else that it raises is a fault of its own."""


class LoadError(EngineError):
    """The engine cannot be made ready; the message says what a person has to do."""


class InvalidRequestError(EngineError):
    """This request can never work, here or elsewhere; the message is for whoever sent it."""


class StoppedError(EngineError):
    """`stop` said so between two steps."""


class OutOfMemoryError(EngineError):
    """The device's memory did not suffice for this request, now. The engine is usable afterwards."""


class EngineBrokenError(EngineError):
    """The device cannot be trusted any more; only a new process helps."""


@dataclass(frozen=True, slots=True)
class Description:
    """What was loaded. `device` is for people, e.g. `cuda:0 (NVIDIA H100 PCIe)`."""

    model: str
    engine: str
    device: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that the parts of one generation took, by a monotonic clock."""

    text: float
    denoise: float
    decode: float
    encode: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished image: PNG bytes of the asked size."""

    png: bytes
    spent: Spent


OnStage = Callable[[str], None]
"""Told what loading does now, in a few words for a person."""
OnStep = Callable[[int], None]
"""Told each denoising step that is done, 1-based."""
Stop = Callable[[], bool]
"""Asked between steps whether to give up."""


class Engine(Protocol):
    def load(self, on_stage: OnStage) -> Description:
        """Make ready, seconds to minutes; LoadError if that cannot be."""
        ...

    def generate(self, request: GenerationRequest, on_step: OnStep, stop: Stop) -> Picture:
        """The image that `request` describes: the same request, the same bytes, on the same device.

        Raises InvalidRequestError, StoppedError, OutOfMemoryError or EngineBrokenError.
        """
        ...


MakeEngine = Callable[[], Engine]
"""Called once, in the engine's thread."""
