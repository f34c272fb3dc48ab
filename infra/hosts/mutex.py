"""One at a time, among all processes of this computer: a file lock that outlives no process.

The lock belongs to the open file, so whoever inherits the descriptor keeps it, and the kernel takes it
back when the last of them is gone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from infra.hosts import HostError

TIMEOUT_S = 120.0
POLL_S = 0.05


@asynccontextmanager
async def only_one(path: Path, what: str) -> AsyncIterator[int]:
    """Hold the lock on `path` (made if missing) and yield its descriptor; the holder may unlink it.

    Raises HostError, which names `what`, if somebody else holds it for two minutes.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while (descriptor := _acquired(path, what)) is None:  # noqa: ASYNC110 - a file lock wakes nobody
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise HostError(
            f"{what}: another command has been changing it for {TIMEOUT_S:g} s; wait for that or end it, then try again"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _acquired(path: Path, what: str) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:
        raise HostError(f"{what}: {path} is another user's; run this as the user who deployed the stack") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)  # held by another, or unlinked by the one who held it: the name means a new file now
    return None
