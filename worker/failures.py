"""What a caller gets instead of an image: refused by the runner, or failed by the engine."""

from __future__ import annotations

from worker.contract import Failed, FailureType
from worker.engine import EngineError, InvalidRequestError, OutOfMemoryError, StoppedError, TooLargeError


class RunnerError(Exception):
    """The root of what the runner answers instead of a generation; the messages are for the caller."""


class ConflictError(RunnerError):
    """The id was used with another request."""


class BusyError(RunnerError):
    """Both places are taken."""


class NotReadyError(RunnerError):
    """Loading, draining or broken."""


class UnknownGenerationError(RunnerError):
    """No generation of this id, or none that has an image."""


class NotFinishedError(RunnerError):
    """It is accepted or running."""


class ImageGoneError(RunnerError):
    """It was finished and kept for its time."""


def failure(generation_id: str, error: BaseException) -> Failed:
    """What an engine's error means to whoever asked for the image."""
    match error:
        case InvalidRequestError():
            kind, retryable = FailureType.INVALID_REQUEST, False
        case TooLargeError():
            kind, retryable = FailureType.TOO_LARGE, True
        case StoppedError():
            kind, retryable = FailureType.CANCELLED, False
        case OutOfMemoryError():
            kind, retryable = FailureType.OUT_OF_MEMORY, True
        case _:
            kind, retryable = FailureType.ENGINE_ERROR, True
    if isinstance(error, EngineError):
        return Failed(id=generation_id, type=kind, detail=str(error), retryable=retryable)
    # A fault's own words may quote the prompt; they are in the log.
    detail = f"the engine failed ({type(error).__name__}); the worker's log has the rest"
    return Failed(id=generation_id, type=kind, detail=detail, retryable=retryable)
