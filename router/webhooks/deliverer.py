"""Works the outbox off: claims what is due, tries it, records what came of it. One in each router process.

Several share one store: a claim is a lease, so nobody else tries the same delivery meanwhile, and a router that
dies in the middle of one leaves it to the next (at least once, as Standard Webhooks promises). Hosts take turns:
one that is slow holds `PER_HOST` places and no more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from router.errors import StoreUnavailableError
from router.jobs import Job
from router.supervise import keep_filled
from router.webhooks import Again, Claim, Dead, Delivered, Delivery, Outbox, Verdict, host_of
from router.webhooks.post import TIMEOUT_S, Poster
from router.webhooks.schedule import judge
from router.webhooks.signing import headers

log = structlog.get_logger(__name__)

PLACES = 32
PER_HOST = 4
IDLE_S = 2.0
"""How often the outbox is looked at although nobody said that there is something in it."""
LEASE_MS = int(4000 * TIMEOUT_S)
KEPT_MS = 30 * 86_400_000
"""How long one that has ended can still be looked at, and replayed."""
FORGET_S = 600.0
FORGET_AT_ONCE = 1000

Compose = Callable[[Delivery], Awaitable[bytes | None]]
"""The body of a delivery's event, as of now; None if what it tells of is no longer kept."""


class Deliverer:
    """`now` gives seconds since the epoch, `draw` a number from [0, 1); `observe` hears of every verdict."""

    def __init__(
        self,
        outbox: Outbox,
        poster: Poster,
        compose: Compose,
        *,
        now: Callable[[], float],
        draw: Callable[[], float],
        observe: Callable[[Verdict], None] = lambda _verdict: None,
        version: str = "0",
    ) -> None:
        self._outbox, self._poster, self._compose = outbox, poster, compose
        self._now, self._draw, self._observe = now, draw, observe
        self._agent = f"letterpress/{version}"
        self._news = asyncio.Event()
        self._trying: dict[asyncio.Task[None], str] = {}

    def wake(self) -> None:
        """There may be something new in the outbox."""
        self._news.set()

    def heard(self, job: Job) -> None:
        """A job has changed in this process."""
        if job.state.ended and job.webhook is not None:
            self.wake()

    async def run(self) -> None:
        """Until cancelled. Tries that are under way are cut off then, and made again when their lease runs out."""
        await keep_filled(self._news, self._trying, self._fill, IDLE_S)

    async def keep_tidy(self) -> None:
        """Remove what ended long ago, until cancelled."""
        while True:
            while await self._outbox.forget_ended(KEPT_MS, FORGET_AT_ONCE) == FORGET_AT_ONCE:
                pass
            await asyncio.sleep(FORGET_S)

    async def _fill(self) -> None:
        while len(self._trying) < PLACES:
            full = [host for host, count in Counter(self._trying.values()).items() if count >= PER_HOST]
            claim = await self._outbox.claim(LEASE_MS, full)
            if claim is None:
                return
            task = asyncio.create_task(self._try(claim))
            self._trying[task] = host_of(claim.delivery.url)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._trying[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook_not_recorded", error=str(error), exc_info=error)

    async def _try(self, claim: Claim) -> None:
        delivery = claim.delivery
        body = await self._compose(delivery)
        if body is None:
            verdict: Verdict = Dead(None, f"{delivery.subject} is no longer kept, so there is nothing to tell of it")
        else:
            signed = headers(claim.secrets, delivery.id, int(self._now()), body)
            told = {"Content-Type": "application/json", "User-Agent": self._agent} | signed
            verdict = judge(await self._poster.post(delivery.url, told, body), delivery.tries, self._draw())
        with suppress(StoreUnavailableError):  # then it is tried again, which at-least-once allows
            if await self._outbox.record(claim, verdict):
                self._observe(verdict)
        _log(delivery, verdict)


def _log(delivery: Delivery, verdict: Verdict) -> None:
    about = {"delivery": delivery.id, "job": delivery.subject, "host": host_of(delivery.url), "try": delivery.tries}
    match verdict:
        case Delivered(status):
            log.info("webhook_delivered", status=status, **about)
        case Again(pause_ms, status, detail):
            log.info("webhook_failed", status=status, detail=detail, again_s=pause_ms // 1000, **about)
        case Dead(status, detail):
            log.warning("webhook_dead", status=status, detail=detail, **about)
