"""How a worker in quarantine shows that it is to be trusted again: one image that nobody waits for.

It is made as any other, by the worker's contract, and has to be the one that was announced. A worker whose image
was damaged once is not tried so: damage comes and goes, and one good image says nothing against it (docs/adr).
"""

from __future__ import annotations

import secrets
from contextlib import aclosing

import structlog

from router.errors import WorkerError
from router.jobs import Cause, Quarantine
from router.worker_client import FetchedImage, WorkerClient
from worker.contract import Failed, Finished, GenerationRequest

log = structlog.get_logger(__name__)

TRIAL = GenerationRequest(prompt="a letterpress print shop at night", width=512, height=512, steps=4, seed=0)
LONGEST_S = 600.0
"""Between two trials."""


class Probation:
    """The trials of one worker, ever more rarely while they fail."""

    def __init__(self, client: WorkerClient, first_s: float) -> None:
        self._client = client
        self._first_s = first_s
        self._pause_s = first_s
        self._due: float | None = None
        self._last = ""

    async def passed(self, now: float) -> bool:
        """Hold the trial if it is due (`now` in monotonic seconds); whether it was held, and went well."""
        if self._due is None:
            self._due = now + self._pause_s
        if now < self._due:
            return False
        self._last = await self._trial()
        if self._last:
            log.warning("worker_failed_its_trial", worker=self._client.name, why=self._last)
            self._pause_s = min(2 * self._pause_s, LONGEST_S)
            self._due = now + self._pause_s
            return False
        self._due, self._pause_s = None, self._first_s
        return True

    def explained(self, quarantine: Quarantine) -> str:
        """For people: why it is there, and how it comes out."""
        out = "an image that nobody waits for, made well, releases it; so does the operator"
        if quarantine.cause is Cause.CORRUPT:
            out = "the operator alone releases it"
        last = f"; its last trial failed: {self._last}" if self._last else ""
        return f"{quarantine.reason} ({out}){last}"

    async def _trial(self) -> str:
        """Why the worker did not make the image; empty if it did."""
        generation_id = f"trial_{secrets.token_hex(8)}.1"
        finished, image = None, None
        try:
            async with aclosing(self._client.generate(generation_id, TRIAL)) as events:
                async for news in events:
                    match news:
                        case Finished():
                            finished = news
                        case Failed():
                            return news.detail
                        case FetchedImage():
                            image = news
            if finished is not None:
                image = image or await self._client.image(generation_id)
                same = image.sha256 == finished.sha256
                return "" if same else "its image is not the one that it announced"
        except WorkerError as error:
            return str(error)
        return "it told no end"
