"""Threads for paramiko's blocking calls: enough of them that a slow machine never holds up another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST = 128
"""Threads that wait cost little. asyncio's own pool has cores + 4, in which ten machines would queue up."""

_POOL = ThreadPoolExecutor(MOST, thread_name_prefix="ssh")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(_POOL, partial(call, *args, **kwargs))
