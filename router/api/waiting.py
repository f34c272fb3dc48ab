"""An open request that waits for its jobs, however long that takes.

Such a request owns its jobs: nobody else was told their ids. When its caller goes away, when one of its jobs
ends without an image, or when the router is told to stop, all of its jobs are cancelled, so that no GPU works
for nobody. (Native jobs belong to their key and outlive every connection.)
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence

import structlog
from fastapi import Request
from pydantic import ValidationError

from router.api.context import Context
from router.api.refusals import Kind, RefusedError, of_job, of_values, refused, stopping
from router.contract import JobState
from router.errors import StoreUnavailableError
from router.jobs import Job
from router.store import ApiKey
from worker.contract import GenerationRequest

_log = structlog.stdlib.get_logger(__name__)


async def make(
    context: Context,
    request: Request,
    key: ApiKey,
    pool: str,
    wanted: Sequence[Mapping[str, object]],
    names: Mapping[str, str] | None = None,
) -> tuple[Job, ...]:
    """One job for each of `wanted` (a GenerationRequest's fields), all succeeded, in their order.

    `names` gives the dialect's own names for those fields. Raises RefusedError or AdmissionError when not all of
    them can be made; those that were begun are cancelled then.
    """
    try:
        requests = [GenerationRequest.model_validate(fields) for fields in wanted]
    except ValidationError as error:
        raise of_values(error, names) from error
    jobs: list[Job] = []
    try:
        for one in requests:
            jobs.append(await context.core.service.submit(key, pool, one))  # noqa: PERF401 - what was begun must be known
        structlog.contextvars.bind_contextvars(jobs=[job.id for job in jobs])
        return await _all_succeeded(context, request, jobs, names)
    except BaseException:  # a cancelled task and a stopping router leave no job behind either; it is raised again
        for job in jobs:
            try:
                await context.core.service.cancel(key, job.id)  # one that has ended stays as it is
            except StoreUnavailableError as failed:
                # The others may still be cancelled, and the caller is told why the request ended.
                _log.error("job_not_cancelled", job=job.id, error=str(failed))
        raise


async def _all_succeeded(
    context: Context, request: Request, jobs: Sequence[Job], names: Mapping[str, str] | None
) -> tuple[Job, ...]:
    waits = [asyncio.create_task(context.core.service.wait(job)) for job in jobs]
    gone, closing = asyncio.create_task(_gone(request)), asyncio.create_task(context.closing.wait())
    try:
        while True:
            ended = [wait.result() for wait in waits if wait.done()]
            for job in ended:
                if job.state is not JobState.SUCCEEDED:
                    raise RefusedError(of_job(job, names))
            if len(ended) == len(waits):
                return tuple(ended)
            if gone.done():
                raise refused(Kind.CLIENT_GONE, "the client closed the connection")
            if closing.done():
                raise stopping()
            waiting = {wait for wait in waits if not wait.done()}
            await asyncio.wait({*waiting, gone, closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        everything = [*waits, gone, closing]
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def image_base64(context: Context, job: Job) -> str:
    """The finished image as text; read and encoded off the event loop (a 2048-pixel PNG has megabytes)."""
    data = await context.core.service.image_bytes(job)
    return await asyncio.to_thread(lambda: base64.b64encode(data).decode())
