"""`make logs`: what every process of a stack wrote last, and what it goes on writing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from infra.deployment import Deployment
from infra.view.console import OUT, say
from infra.view.observe import Kept, units

POLL_S = 0.5


async def show(deployment: Deployment, lines: int, *, follow: bool) -> None:
    """Print the last `lines` of each process, and with `follow` what comes, until interrupted or unread."""
    kept = await units(deployment)
    width = max(len(one.described.unit) for one in kept)

    def tell(one: Kept, written: Iterable[str]) -> None:
        for line in written:
            say(f"{one.described.unit:<{width}} | {line}")

    positions = [await one.host.log_end(one.described.unit) for one in kept]
    for one in kept:
        tell(one, (await one.host.tail(one.described.unit, lines)).splitlines() or ["(nothing yet)"])
    while follow and not OUT.quiet:
        await asyncio.sleep(POLL_S)
        for index, one in enumerate(kept):
            written, positions[index] = await one.host.written_since(one.described.unit, positions[index])
            tell(one, written.splitlines())
