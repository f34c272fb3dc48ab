"""`make logs`: what every process of a stack wrote last, and what it goes on writing."""

from __future__ import annotations

import asyncio

from infra.console import say
from infra.deployment import Deployment
from infra.observe import Kept, units

POLL_S = 0.5
REMEMBERED_LINES = 2000
"""How far back a look goes to find what is new; more than this between two looks is skipped, and said."""


async def show(deployment: Deployment, lines: int, *, follow: bool) -> None:
    """Print the last `lines` of each process, and with `follow` whatever comes until interrupted."""
    kept = await units(deployment)
    width = max(len(one.described.unit) for one in kept)
    seen: dict[str, list[str]] = {}
    for one in kept:
        seen[one.described.unit] = await _tail(one)
        for line in seen[one.described.unit][-lines:] or ["(nothing yet)"]:
            say(f"{one.described.unit:<{width}} | {line}")
    while follow:
        await asyncio.sleep(POLL_S)
        for one in kept:
            now = await _tail(one)
            for line in new_lines(seen[one.described.unit], now):
                say(f"{one.described.unit:<{width}} | {line}")
            seen[one.described.unit] = now


async def _tail(one: Kept) -> list[str]:
    return (await one.host.tail(one.described.unit, REMEMBERED_LINES)).splitlines()


def new_lines(before: list[str], now: list[str]) -> list[str]:
    """What `now` has after everything of `before`: both are ends of one log that only grows."""
    for start in range(len(before)):
        known = before[start:]
        if now[: len(known)] == known:
            return now[len(known) :]
    return now
