"""Keeps the router's own loops going: one that fails in a way nobody foresaw is reported and begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

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
