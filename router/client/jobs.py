"""The native jobs' client: one image asked for, waited for and fetched."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress

import httpx
from pydantic import TypeAdapter

from router.client.errors import JobEndedError, RouterAwayError, RouterClientError, RouterUnavailableError
from router.client.http import CONNECTIONS, HttpClient
from router.contract import Health, JobRequest, JobsAccepted, JobState, JobView

_JOB = TypeAdapter(JobView)
_HEALTH = TypeAdapter(Health)
_ACCEPTED = TypeAdapter(JobsAccepted)

DATA = "data: "
"""Begins what an event says (server-sent events)."""

Heard = Callable[[JobView], None]

RECONNECT_S = 1.0
"""Pause before an event stream that broke is opened again."""


class RouterClient(HttpClient):
    """Speaks to the public app at `base_url` (the edge).

    Every method raises RouterAwayError when nobody answers and RouterRefusedError (or a subclass) when the
    router says no.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        transport: httpx.AsyncBaseTransport | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        super().__init__(base_url, api_key, transport, connections)

    async def health(self) -> Health:
        """RouterUnavailableError while the router's store does not answer."""
        return await self._read(_HEALTH, "GET", "/healthz")

    async def submit(self, request: JobRequest, idempotency_key: str | None = None) -> JobView:
        """A new job, or within a day the one that `idempotency_key` made before. Without such a key this is not safe
        to repeat after RouterAwayError: the first one may have been accepted."""
        headers = {"Content-Type": "application/json"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        answer = await self._send("POST", "/v1/jobs", request.model_dump_json(exclude_none=True).encode(), headers)
        return self._parsed(_JOB, answer, "POST", "/v1/jobs")

    async def submit_batch(self, requests: Iterable[JobRequest], idempotency_key: str | None = None) -> list[str]:
        """The ids of many new jobs, in their order: all were taken on, or none. Safe to repeat under one
        `idempotency_key`."""
        headers = {"Content-Type": "application/x-ndjson"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        lines = (request.model_dump_json(exclude_none=True).encode() + b"\n" for request in requests)
        answer = await self._send("POST", "/v1/jobs/batch", b"".join(lines), headers)
        return self._parsed(_ACCEPTED, answer, "POST", "/v1/jobs/batch").ids

    async def job(self, job_id: str) -> JobView:
        return await self._read(_JOB, "GET", f"/v1/jobs/{job_id}")

    async def cancel(self, job_id: str) -> JobView:
        """Cancelled at once when it waits, between two steps when it runs, unchanged when it has ended."""
        return await self._read(_JOB, "DELETE", f"/v1/jobs/{job_id}")

    async def follow(self, job_id: str, heard: Heard | None = None, alive: Callable[[], None] | None = None) -> JobView:
        """The job once its stream of events has ended: with the job, or because the router was told to stop.
        `heard` is told how it is at each event; `alive` is called at each of them and at each heartbeat."""
        path = f"/v1/jobs/{job_id}/events"
        async with self._open("GET", path) as stream:
            async for line in stream.aiter_lines():
                if alive is not None:
                    alive()
                if heard is not None and line.startswith(DATA):
                    heard(_JOB.validate_json(line.removeprefix(DATA)))
        return await self.job(job_id)

    async def wait(self, job_id: str, heard: Heard | None = None) -> JobView:
        """The job once it has ended, however it ended. Survives a router that restarts meanwhile."""
        while True:
            try:
                view = await self.follow(job_id, heard)
                if view.state.ended:
                    return view
            except RouterClientError as error:
                if not _passing(error):
                    raise
            await asyncio.sleep(RECONNECT_S)

    async def image(self, job_id: str) -> bytes:
        """The finished image. RouterRefusedError (409) while there is none."""
        return (await self._call("GET", f"/v1/jobs/{job_id}/image", follow=True)).content

    async def generate(self, request: JobRequest) -> bytes:
        """Submit, wait, fetch. JobEndedError if no image came of it; a caller that gives up cancels the job."""
        return (await self.generated(request))[1]

    async def generated(self, request: JobRequest, heard: Heard | None = None) -> tuple[JobView, bytes]:
        """As `generate`, and how the job ended. `heard` is told how it is at each of its events.

        If the answer to its submission is lost, it is submitted again, and is still one job."""
        key = secrets.token_hex(16)
        try:
            job = await self.submit(request, key)
        except RouterAwayError:  # it may have been accepted before the connection broke
            job = await self.submit(request, key)
        try:
            ended = await self.wait(job.id, heard)
        except asyncio.CancelledError:
            with suppress(RouterClientError):  # the caller gives up, whatever the router says
                await self.cancel(job.id)
            raise
        if ended.state is not JobState.SUCCEEDED:
            raise JobEndedError(ended)
        return ended, await self.image(job.id)


def _passing(error: RouterClientError) -> bool:
    """Whether a wait may go on after this: nobody there just now, or the edge speaking for a router away."""
    return isinstance(error, RouterAwayError | RouterUnavailableError)
