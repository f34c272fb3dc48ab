"""Keeps the router's own loops going: one that fails in a way nobody foresaw is reported and begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog

from router.errors import StoreUnavailableError

log = structlog.get_logger(__name__)

PAUSE_S = 1.0
"""Before a failed loop begins again: a full disk or a locked database is not helped by haste."""


async def forever(name: str, loop: Callable[[], Awaitable[None]], pause_s: float = PAUSE_S) -> None:
    """Run `loop` until cancelled, again after each failure."""
    while True:
        try:
            await loop()
        except StoreUnavailableError as error:
            log.error("store_unavailable", loop=name, error=str(error))  # noqa: TRY400 - its trace says nothing more
        except Exception:  # to go on after what nobody foresaw is what this module is for
            log.exception("loop_failed", loop=name)
        await asyncio.sleep(pause_s)


async def keep_filled(
    news: asyncio.Event,
    working: Collection[asyncio.Task[None]],
    fill: Callable[[], Awaitable[None]],
    idle_s: float,
) -> None:
    """`fill` the places in `working` when there is news, when one of them has ended, and every `idle_s` seconds.

    Until cancelled: what is under way is cancelled then, too.
    """
    try:
        while True:
            news.clear()
            await fill()
            told = asyncio.create_task(news.wait())
            try:
                await asyncio.wait({told, *working}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
