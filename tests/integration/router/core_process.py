"""A router's core as a process of its own, to be killed: `python -m tests.integration.router.core_process FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from router.core import open_core
from tests.integration.router.core_rig import brisk


async def _run(folder: Path) -> None:
    async with open_core(brisk(folder)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1])))
