"""An open request that waits for its jobs, however long that takes.

Such a request owns its jobs: nobody else was told their ids. When its caller goes away, when one of its jobs
ends without an image, or when the router is told to stop, all of its jobs are cancelled, so that no GPU works
for nobody. (Native jobs belong to their key and outlive every connection.)

A request with an Idempotency-Key may be sent again, and joins its jobs then. So they are cancelled only if they have
not started, and only when the last who waited for them has gone; and not at all when the router stops.

A router that is killed can do none of this. The next one, or another, does it about a minute later (`router.fronts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pybase64
import structlog
from fastapi import Request
from pydantic import ValidationError

from router.admission import POOL_RETRY_S
from router.api.context import Context
from router.api.rate import remember_rate
from router.api.refusals import Kind, RefusedError, of_job, of_values, refused, stopping
from router.choice import ANY_TERMS, Terms
from router.contract import JobState
from router.errors import StoreUnavailableError
from router.jobs import Job, NewJob
from router.store import ApiKey, Repeatable
from worker.contract import GenerationRequest

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """Jobs that were taken on for an open request. Whoever holds it waits for them, or abandons them."""

    context: Context
    key: ApiKey
    pool: str
    job_ids: tuple[str, ...]
    repeated: Repeatable | None
    joined: bool
    """Whether an earlier request had asked for them."""
    wanted: Sequence[NewJob]

    def abandon(self) -> None:
        """The request is over, its jobs are not: in a task of its own, for the request's may be cancelled already."""
        task = asyncio.create_task(_abandon(self.context, self.key, self.job_ids, self.repeated))
        _ABANDONING.add(task)
        task.add_done_callback(_ABANDONING.discard)


_ABANDONING: set[asyncio.Task[None]] = set()
"""The event loop itself holds tasks only weakly."""


async def take_on(
    context: Context,
    request: Request,
    key: ApiKey,
    pool: str,
    wanted: Sequence[Mapping[str, object]],
    names: Mapping[str, str] | None = None,
    *,
    terms: Terms = ANY_TERMS,
    repeated: Repeatable | None = None,
) -> Taken:
    """One job for each of `wanted` (a GenerationRequest's fields), in their order.

    `names` gives the dialect's own names for those fields. Raises RefusedError or AdmissionError; then there is none.
    """
    try:
        new = [NewJob(GenerationRequest.model_validate(fields), terms) for fields in wanted]
    except ValidationError as error:
        raise of_values(error, names) from error
    service = context.core.service
    # In a task of its own, shielded: what was begun must be known also to a caller that is cancelled meanwhile.
    submitting = asyncio.create_task(service.submit_all(key, pool, new, repeated, waits=True))
    try:
        admitted = await asyncio.shield(submitting)
        remember_rate(request, admitted.rate)
        structlog.contextvars.bind_contextvars(jobs=list(admitted.job_ids))
        return Taken(context, key, pool, tuple(admitted.job_ids), repeated, admitted.joined, new)
    except BaseException:  # a cancelled task and a stopping router leave no job behind either; it is raised again
        await asyncio.wait([submitting])
        if submitting.exception() is None:
            await _abandon(context, key, submitting.result().job_ids, repeated)
        raise


async def make(
    context: Context,
    request: Request,
    key: ApiKey,
    pool: str,
    wanted: Sequence[Mapping[str, object]],
    names: Mapping[str, str] | None = None,
    *,
    terms: Terms = ANY_TERMS,
    repeated: Repeatable | None = None,
) -> tuple[Job, ...]:
    """Takes them on as `take_on` does, and waits: all succeeded, in their order.

    Raises RefusedError or AdmissionError when not all of them can be made; those that were begun are cancelled then.
    """
    taken = await take_on(context, request, key, pool, wanted, names, terms=terms, repeated=repeated)
    try:
        return await _all_succeeded(request, taken, names)
    except BaseException:  # likewise
        await _abandon(context, key, taken.job_ids, repeated)
        raise


async def _abandon(context: Context, key: ApiKey, job_ids: Sequence[str], repeated: Repeatable | None) -> None:
    service = context.core.service
    if repeated is not None:
        try:
            await service.leave(key, repeated, cancel=not context.closing.is_set())
        except StoreUnavailableError as failed:
            _log.error("jobs_not_cancelled", jobs=list(job_ids), error=str(failed))
        return
    for job_id in job_ids:
        try:
            await service.cancel(key, job_id)  # one that has ended stays as it is
        except StoreUnavailableError as failed:
            # The others may still be cancelled, and the caller is told why the request ended.
            _log.error("job_not_cancelled", job=job_id, error=str(failed))


async def _all_succeeded(request: Request, taken: Taken, names: Mapping[str, str] | None) -> tuple[Job, ...]:
    service, fresh = taken.context.core.service, not taken.joined
    waits = [asyncio.create_task(service.wait(job_id, fresh=fresh)) for job_id in taken.job_ids]
    gone, closing = asyncio.create_task(_gone(request)), asyncio.create_task(taken.context.closing.wait())
    not_booted = asyncio.create_task(service.not_booted(taken.pool, taken.wanted))
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
            if not_booted.done():
                raise refused(Kind.POOL_UNAVAILABLE, not_booted_in(taken.pool), POOL_RETRY_S)
            waiting = {wait for wait in waits if not wait.done()}
            await asyncio.wait({*waiting, gone, closing, not_booted}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Each is over when it next runs. To wait for that would cost an answer that is ready some turns of the loop.
        for task in (*waits, gone, closing, not_booted):
            task.cancel()


def not_booted_in(pool: str) -> str:
    return f"no worker of pool {pool} that could make it has become ready"


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def image_base64(context: Context, job: Job) -> bytes:
    """The finished image in base64."""
    return pybase64.b64encode(await context.core.service.image_bytes(job))
