"""Asking again what may pass: nobody there just now, no room just now. When to stop, too."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from router.client.batch.errors import BatchError, NotNowError
from router.client.errors import (
    RouterAnswerError,
    RouterAwayError,
    RouterClientError,
    RouterRefusedError,
    RouterUnavailableError,
)

T = TypeVar("T")

FIRST_S, LONGEST_S = 0.25, 30.0
"""The first pause, and the longest where nobody said how long to wait."""
MOST_ASKED_S = 600.0
"""However long a Retry-After asks for."""
CUT_S = 1.0
"""A shared pause is looked at this often: it may have become shorter."""


def passing(error: RouterClientError) -> bool:
    """Whether the same may go well later: what a broken connection, a restart or a full queue causes."""
    if isinstance(error, RouterRefusedError):
        return isinstance(error, RouterUnavailableError) or error.status >= 500
    return isinstance(error, RouterAwayError | RouterAnswerError)


def pause_s(failures: int, retry_after_s: float | None, drawn: float) -> float:
    """Before the next time, after `failures` in a row (from 1). `drawn`, from [0, 1), keeps many from coming at once:
    never earlier than was asked for, and up to a quarter later."""
    wanted = min(FIRST_S * 2 ** min(failures - 1, 20), LONGEST_S) if retry_after_s is None else retry_after_s
    return min(wanted, MOST_ASKED_S) * (1 + drawn / 4)


class Patience:
    """One for a whole batch. `told` hears why it waits, and an empty text when it goes on.

    `give_up_s` from the first failure without one good answer, to anything, ends the batch. A quiet stretch in which
    nothing was asked is none of it: jobs may wait for hours.
    """

    def __init__(
        self, give_up_s: float, told: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._give_up_s, self._told, self._clock = give_up_s, told, clock
        self._failing_since: float | None = None
        self._not_before = 0.0

    async def insist(self, ask: Callable[[], Awaitable[T]], *, shared: bool = False) -> T:
        """What `ask` returns in the end. With `shared`, a 429 or 503 holds everybody back who asks for more.

        Raises what is not passing, and BatchError once patience has run out.
        """
        failures = 0
        while True:
            while shared and (left := self._not_before - self._clock()) > 0:  # noqa: ASYNC110 - a clock
                await asyncio.sleep(min(left, CUT_S))
            try:
                found = await ask()
            except RouterClientError as error:
                if not passing(error):
                    raise
                failures += 1
                await self._after(error, failures, shared=shared)
            except NotNowError:  # of this line alone: whoever was asked is there
                self._good(failures)
                raise
            else:
                self._good(failures)
                return found

    def well(self) -> None:
        """Something was heard, if only in the middle of an answer: whoever is asked is there."""
        self._failing_since = None

    def _good(self, failures: int) -> None:
        if failures:
            self._told("")
        self.well()

    async def _after(self, error: RouterClientError, failures: int, *, shared: bool) -> None:
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        silent_s = now - self._failing_since
        if silent_s >= self._give_up_s:
            raise BatchError(f"nothing has gone well for {silent_s:.0f} s; last: {error}") from error
        asked = error.retry_after_s if isinstance(error, RouterRefusedError) else None
        pause = pause_s(failures, asked, random.random())  # noqa: S311 - no secret
        self._told(str(error))
        if shared and isinstance(error, RouterUnavailableError):
            self._not_before = max(self._not_before, self._clock() + pause)
        else:
            await asyncio.sleep(pause)
