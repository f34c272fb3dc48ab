"""The router's error tree. A message says what happened, to which thing, and what to do next.

Errors that cross to a client are turned into its dialect in `router.api`; nothing here knows HTTP.
"""

from __future__ import annotations

from router.limits import Rate


class RouterError(Exception):
    """The root: something that a caller of the router's core can act on."""


class StoreUnavailableError(RouterError):
    """The database did not answer, or is locked or full. Nothing was promised; trying again is safe."""


class ArtifactError(RouterError):
    """An image could not be stored, or a stored one is not there."""


class ArtifactGoneError(ArtifactError):
    """What was stored is not there any more, or is damaged: trying again ends the same."""


class AdmissionError(RouterError):
    """A job was not taken on. `retry_after_s` is when asking again makes sense, in seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PoolUnavailableError(AdmissionError):
    """Nobody is registered who could make an image for this pool."""

    def __init__(self, pool: str, detail: str, retry_after_s: int) -> None:
        super().__init__(f"pool {pool}: {detail}", retry_after_s)
        self.pool = pool
        self.detail = detail


class UnmakeableError(AdmissionError):
    """Workers of the pool take jobs, and none of them can make this one."""

    def __init__(self, pool: str, wanted: str, retry_after_s: int) -> None:
        super().__init__(f"pool {pool}: no worker there makes images of {wanted}", retry_after_s)
        self.pool = pool


class QueueFullError(AdmissionError):
    """The pool's queue holds as many jobs as it may."""

    def __init__(self, pool: str, queued: int, retry_after_s: int, room: int = 0) -> None:
        super().__init__(
            f"pool {pool}: {queued} jobs already wait, which is as many as may; try again in {retry_after_s} s",
            retry_after_s,
        )
        self.pool = pool
        self.queued = queued
        self.room = room
        """For how many there would have been room."""


class WaitTooLongError(AdmissionError):
    """So much waits already that nobody should stay on the line for it."""

    def __init__(self, pool: str, wait_s: float, retry_after_s: int) -> None:
        super().__init__(
            f"pool {pool}: an image would wait about {wait_s:.0f} s for a worker; ask again in {retry_after_s} s, "
            "or ask for a job at /v1/jobs and come back for it",
            retry_after_s,
        )


class RateLimitedError(AdmissionError):
    """The key has asked too often."""

    def __init__(self, rate: Rate, retry_after_s: int) -> None:
        super().__init__(
            f"this API key may ask {rate.limit} times a minute; ask again in {retry_after_s} s", retry_after_s
        )
        self.rate = rate


class KeyQueueFullError(AdmissionError):
    """As many of the key's jobs wait in the pool as may."""

    def __init__(self, pool: str, allowed: int, retry_after_s: int = 1, room: int = 0) -> None:
        super().__init__(
            f"pool {pool}: this API key may have {allowed} jobs there that have not ended, and has; "
            f"ask again in {retry_after_s} s",
            retry_after_s,
        )
        self.pool, self.allowed, self.room = pool, allowed, room


class LeaseLostError(RouterError):
    """The batch is somebody else's to work at by now; nothing was changed."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"the lease on {batch_id} no longer holds")


class FileInUseError(RouterError):
    """An open batch still reads the file."""

    def __init__(self, file_id: str, batch_id: str) -> None:
        super().__init__(f"{file_id} is the input of {batch_id}, which is not over; cancel that, or wait for its end")


class FilesFullError(RouterError):
    """The key keeps as many files as it may, or too large ones."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; delete some (DELETE /v1/files/{{id}}), or let them expire sooner (expires_after)")


class OutputTooLargeError(RouterError):
    """A batch's answers might take more room than its key has for files."""

    def __init__(self, output: str, room: str) -> None:
        super().__init__(
            f"the answers may take {output}, and this API key has room for {room} of files: ask for response_format "
            "url, which takes next to nothing, send several batches, or delete files (DELETE /v1/files/{id})"
        )


class PoolForbiddenError(RouterError):
    """The key may not use the pool."""


class IdempotencyError(RouterError):
    """The same Idempotency-Key came with another request before."""


class KeyExistsError(RouterError):
    """There is an API key of this name, in use or revoked."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is an API key named {name} already, in use or revoked; choose another name")


class WorkerError(RouterError):
    """A worker did not do what it was asked. The message names the worker."""


class WorkerUnreachableError(WorkerError):
    """No connection, a broken one, or a silent one: the worker, its machine or the way to it is gone."""


class WorkerSilentError(WorkerUnreachableError):
    """The connection stands, but nothing has come over it for longer than a live worker would let pass."""


class WorkerUnavailableError(WorkerError):
    """The worker answers, but takes no generation now: loading, draining or broken."""


class WorkerBusyError(WorkerUnavailableError):
    """Both of the worker's places are taken."""


class WorkerUnauthorizedError(WorkerError):
    """The worker does not accept the token that it was registered with."""


class WorkerRefusedError(WorkerError):
    """The worker says that this request can never work."""


class WorkerProtocolError(WorkerError):
    """The worker's answer is not what the contract says."""
