"""Who makes a batch's images: a router, or one worker by itself. Both find again what was begun before."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from router.client.batch.errors import BatchError, NotMadeError, NotNowError
from router.client.batch.lines import generation
from router.client.batch.patience import Patience
from router.client.errors import (
    RouterAnswerError,
    RouterNotFoundError,
    RouterPoolUnavailableError,
    RouterRefusedError,
    RouterUnauthorizedError,
    RouterUnmakeableError,
)
from router.client.jobs import RouterClient
from router.client.worker import Event, WorkerClient
from router.contract import JobRequest, JobState, JobView
from worker.contract import Failed, FailureType, Finished, GenerationRequest

T = TypeVar("T")

MAX_CRASHES = 3
"""Of one line on a worker by itself; a router counts for us."""
MAX_LOST = 5
"""Times that a job or an image is gone when it is asked for, before the line is given up."""
UNMAKEABLE_RETRY_S = 30.0
"""Where the router does not say when to ask again."""


@dataclass(frozen=True, slots=True)
class Work:
    """One line's image. `name` is its own in all the world and the same each time that the batch goes on; `job` is
    what the router called it, if that is known. `elsewhere` if its pool is another than the batch's."""

    name: str
    request: JobRequest
    job: str | None = None
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    data: bytes
    sha256: str
    media_type: str
    seed: int
    gpu_s: float
    is_image_safe: bool
    safety_reason: str
    job: str | None


class Maker(Protocol):
    async def make(self, work: Work, begun: Callable[[str], Awaitable[None]]) -> Made:
        """The image. `begun` is told the job as soon as it is known.

        Raises NotMadeError and NotNowError for this line alone, BatchError when no line can be made.
        """
        ...

    async def drop(self, job: str) -> bool:
        """Nobody wants the image of this job any more; whether it is certain that it will not be made for nothing."""
        ...


class ByRouter:
    """Each line is a native job, under an Idempotency-Key of its own."""

    def __init__(self, client: RouterClient, patience: Patience) -> None:
        self._client, self._patience = client, patience

    async def make(self, work: Work, begun: Callable[[str], Awaitable[None]]) -> Made:
        job = work.job
        for _ in range(MAX_LOST):
            try:
                if job is None:
                    job = await self._submit(work)
                    await begun(job)
                return await self._fetch(await self._ended(job))
            except RouterNotFoundError:
                job = None  # it was forgotten there, or this is another router
            except RouterUnauthorizedError as error:
                raise _wrong_key(error) from error
            except RouterRefusedError as error:
                raise _refused(error, job) from error
        raise NotMadeError("lost", f"the router has forgotten its job {MAX_LOST} times", job)

    async def drop(self, job: str) -> bool:
        try:
            with suppress(RouterNotFoundError):  # it was forgotten there, or this is another router
                await self._patience.insist(lambda: self._client.cancel(job))
        except RouterUnauthorizedError as error:
            raise _wrong_key(error) from error
        return True

    async def _submit(self, work: Work) -> str:
        async def ask() -> JobView:
            try:
                return await self._client.submit(work.request, idempotency_key=work.name)
            except (RouterUnmakeableError, RouterPoolUnavailableError) as error:
                if isinstance(error, RouterPoolUnavailableError) and not work.elsewhere:
                    raise  # it would meet every line
                raise NotNowError(error.detail, error.retry_after_s or UNMAKEABLE_RETRY_S) from error

        return (await self._patience.insist(ask, shared=True)).id

    async def _ended(self, job: str) -> JobView:
        while True:
            view = await self._patience.insist(lambda: self._client.follow(job, alive=self._patience.well))
            if view.state.ended:
                return view

    async def _fetch(self, view: JobView) -> Made:
        image = view.image
        if view.state is not JobState.SUCCEEDED or image is None:
            error = view.error
            raise NotMadeError(error.type if error else view.state, error.detail if error else "", view.id)
        data = await _whole(self._patience, lambda: self._client.image(view.id), image.sha256, view.id)
        return Made(
            data=data,
            sha256=image.sha256,
            media_type=image.media_type,
            seed=image.seed,
            gpu_s=image.gpu_s or 0.0,
            is_image_safe=image.is_image_safe,
            safety_reason=image.safety_reason,
            job=view.id,
        )


class ByWorker:
    """Each line is a generation of its own; the worker's PUT joins one that it has."""

    def __init__(self, client: WorkerClient, patience: Patience) -> None:
        self._client, self._patience = client, patience

    async def make(self, work: Work, begun: Callable[[str], Awaitable[None]]) -> Made:  # noqa: ARG002 - the name is enough
        request = generation(work.request)
        crashes = lost = 0
        attempt = 0
        while True:
            attempt += 1
            name = f"{work.name}.{attempt}"
            try:
                end = await self._end(name, request)
                if isinstance(end, Finished):
                    return await self._fetch(name, end)
            except RouterUnauthorizedError as error:
                raise BatchError(f"{error}; give the token of this worker (--token-file)") from error
            except RouterRefusedError as error:
                # 404, 410: it was restarted, or kept the image for its minutes. 409: the name is another batch's.
                lost += 1
                if error.status not in (404, 409, 410) or lost == MAX_LOST:
                    raise _refused(error, None) from error
                continue
            if not end.retryable or end.type is FailureType.TOO_LARGE:  # there is no other worker here
                raise NotMadeError(end.type, end.detail)
            if end.type is not FailureType.DRAINING:
                crashes += 1
            if crashes == MAX_CRASHES:
                raise NotMadeError(end.type, f"{crashes} times; last: {end.detail}")

    async def drop(self, job: str) -> bool:  # noqa: ARG002 - it is a router's, which is not here to be told
        return False

    async def _end(self, name: str, request: GenerationRequest) -> Finished | Failed:
        async def ask() -> Event:
            last: Event | None = None
            async for event in self._client.generate(name, request):
                last = event
                self._patience.well()
            if last is None:
                raise RouterAnswerError(f"generation {name}: the worker told nothing of it")
            return last

        end = await self._patience.insist(ask, shared=True)
        if not isinstance(end, Finished | Failed):
            raise BatchError(f"generation {name}: the worker's stream ended with {end.event}")
        return end

    async def _fetch(self, name: str, end: Finished) -> Made:
        data = await _whole(self._patience, lambda: self._client.image(name), end.sha256, None)
        return Made(
            data=data,
            sha256=end.sha256,
            media_type=end.media_type,
            seed=end.seed,
            gpu_s=end.timings.gpu,
            is_image_safe=end.is_image_safe,
            safety_reason=end.safety_reason,
            job=None,
        )


async def _whole(patience: Patience, fetch: Callable[[], Awaitable[bytes]], sha256: str, job: str | None) -> bytes:
    """The image, once it is the one that was announced."""
    for _ in range(MAX_LOST):
        data = await patience.insist(fetch)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise NotMadeError("damaged", f"the image was not the announced one, {MAX_LOST} times", job)


def _wrong_key(error: RouterUnauthorizedError) -> BatchError:
    return BatchError(f"{error}; give the key of this router (--api-key)")


def _refused(error: RouterRefusedError, job: str | None) -> BatchError | NotMadeError:
    """403 and 405 would meet every line; what else is refused is this line's own fault."""
    if error.status in (403, 405):
        return BatchError(str(error))
    return NotMadeError("refused", f"{error.status}: {error.detail}", job)
