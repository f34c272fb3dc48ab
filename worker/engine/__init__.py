"""Engines turn a request into an image, in two stages. One protocol; `worker.runner` drives whichever was configured.

`prepare` reads the request and encodes its text, `render` denoises and decodes; what file becomes of the
image is no engine's business (`worker.picture`). That way one image is rendered while the next one's text is
encoded and the last one's file is written, and the GPU waits for neither.

An engine is plain and synchronous. It is imported, made, loaded and renders in one thread, so its module may
import torch at its top; it prepares in a second one, which may be at work while the first one renders. Each
of the two makes one call at a time. It knows nothing of HTTP, ids, queues or other requests.
`worker.engine.reference` is diffusers' own pipeline; what is faster comes beside it and is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

from worker.contract import MAX_PIXELS, GenerationRequest


class EngineError(Exception):
    """The root of what an engine raises on purpose. Anything else that it raises is a fault of its own."""


class LoadError(EngineError):
    """The engine cannot be made ready; the message says what a person has to do."""


class NoRoomError(LoadError):
    """What the engine builds cannot be kept on disk. At work it fails one request; the next ones go on without."""


class InUseError(EngineError):
    """Others hold the memory that loading needs. They may end, so another start may go well."""


class InvalidRequestError(EngineError):
    """This request can never work, here or elsewhere; the message is for whoever sent it."""


class TooLargeError(EngineError):
    """This device has no memory for an image of that size; another worker's may have. The message has the numbers."""


class StoppedError(EngineError):
    """`stop` said so between two steps."""


class OutOfMemoryError(EngineError):
    """The device's memory did not suffice for this request, now. The engine is usable afterwards."""


class EngineBrokenError(EngineError):
    """The device cannot be trusted any more; only a new process helps."""


@dataclass(frozen=True, slots=True)
class Description:
    """What was loaded. `device` is for people, e.g. `cuda:0 (NVIDIA H100 PCIe)`.

    `tier` names the arithmetic (`exact`: the weights' own values), `max_pixels` the largest image (width times
    height) that the device has memory for. `notice` goes into every image's metadata, e.g. that it is noise.
    """

    model: str
    engine: str
    device: str
    tier: str = "exact"
    max_pixels: int = MAX_PIXELS
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be rendered. `payload` is what its engine keeps for that, and nobody else's.

    `text` is the seconds that preparing took, by a monotonic clock.
    """

    request: GenerationRequest
    payload: object
    text: float


@dataclass(frozen=True, slots=True)
class Rendered:
    """An RGB image of the asked size, in the CPU's memory.

    The seconds that its parts took, by a monotonic clock; `text` is what of the text was left to do by then.
    """

    image: Image
    denoise: float
    decode: float
    text: float = 0.0


OnStage = Callable[[str], None]
"""Told what loading does now, in a few words for a person."""
OnStep = Callable[[int], None]
"""Told each denoising step that is done, 1-based."""
Stop = Callable[[], bool]
"""Asked between steps whether to give up."""


class Engine(Protocol):
    """The same request makes the same pixels on the same device, whatever else is prepared or rendered.

    All three raise OutOfMemoryError or EngineBrokenError when the device fails them.
    """

    def load(self, on_stage: OnStage) -> Description:
        """Make ready, seconds to minutes; LoadError if that cannot be."""
        ...

    def prepare(self, request: GenerationRequest) -> Prepared:
        """Check the request and encode its text. Raises InvalidRequestError if it can never work, TooLargeError if
        it cannot on this device.

        Called from a second thread, also while `render` runs in the engine's own.
        """
        ...

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        """The image that was prepared, in the engine's own thread. Raises StoppedError if `stop` says so."""
        ...


MakeEngine = Callable[[], Engine]
"""Called once, in the engine's thread."""
