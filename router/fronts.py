"""Fronts: router processes that answer requests, and which of them have died.

A front counts its beats up in its own row. Who looks compares what it sees with what it saw before, and asks no clock:
a clock that is set, a machine that is suspended with all that is on it and a database that is away make nobody dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import structlog

from router.errors import StoreUnavailableError
from router.jobs import Job

log = structlog.get_logger(__name__)

AT_ONCE = 500
"""So many jobs or shares of a front that has gone are settled in one transaction."""
GIVE_BACK_S = 5.0
"""How long a front that stops tries to say so. One that does not get through is found dead."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A piece of what a front left behind: the jobs that were cancelled, and whether anything may be left."""

    cancelled: Sequence[Job]
    done: bool


class Fronts(Protocol):
    """Every method is one transaction, and may raise StoreUnavailableError."""

    async def beat(self, front: str, beats: int) -> None:
        """The front lives, and has beaten so often. Its row is made if there is none."""
        ...

    async def beats(self) -> Mapping[str, int]:
        """How often each front has beaten."""
        ...

    async def settle(self, front: str, beats: int, limit: int, *, cancel_repeatable: bool) -> Settled:
        """At most `limit` of what the front left behind, unless it has beaten since: jobs of its open requests that
        have not started are cancelled, and it waits no more for those that may be repeated. With `cancel_repeatable`,
        of these, too, what has not started and nobody waits for any more is cancelled. Its row goes at the end."""
        ...


class Silences:
    """A front whose beats stayed the same in `looks` looks in a row, after the first one, is dead."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._seen: dict[str, tuple[int, int]] = {}

    def look(self, beats: Mapping[str, int]) -> Sequence[str]:
        """Those that are dead, of all that there are."""
        seen = {}
        for front, now in beats.items():
            before, unchanged = self._seen.get(front, (None, 0))
            seen[front] = now, unchanged + 1 if before == now else 0
        self._seen = seen
        return [front for front, (_, unchanged) in seen.items() if unchanged >= self._looks]

    def anew(self) -> None:
        """A look failed, or who looks stood still: what was seen before says nothing."""
        self._seen.clear()


@asynccontextmanager
async def present(fronts: Fronts, front: str, every_s: float) -> AsyncIterator[None]:
    """This process is the front. Raises StoreUnavailableError if it cannot say so at the start."""
    beats = count(1)
    last = next(beats)
    await fronts.beat(front, last)

    async def keep_beating() -> None:
        nonlocal last
        while True:
            await asyncio.sleep(every_s)
            try:
                last = next(beats)
                await fronts.beat(front, last)
            except StoreUnavailableError as error:
                log.error("store_unavailable", loop="front", error=str(error))  # noqa: TRY400 - its trace says no more

    beating = asyncio.create_task(keep_beating())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        try:
            async with asyncio.timeout(GIVE_BACK_S):
                last = next(beats)  # whichever of the beats before has arrived
                await fronts.beat(front, last)
                while not (await fronts.settle(front, last, AT_ONCE, cancel_repeatable=False)).done:
                    pass
        except (StoreUnavailableError, TimeoutError) as error:
            log.warning("front_not_ended", front=front, error=str(error))
