"""Workers, the pools that they are in, and whether a router will do."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from router.contract.names import MAX_PORT, SOCKET_PATH_MAX, PoolName, WorkerName
from worker.contract import Frozen


def _token(value: str) -> str:
    """No pattern: a fault of a pattern shows the value."""
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("must be visible ASCII characters: it travels in a header")
    return value


def _reachable(url: str) -> str:
    """What the socket calls would refuse only when the worker is asked, and then each time."""
    path = url.removeprefix("unix:").encode()
    if url.startswith("unix:") and (b"\0" in path or len(path) > SOCKET_PATH_MAX):
        raise ValueError(f"a unix socket's path has at most {SOCKET_PATH_MAX} bytes, and no NUL among them")
    if url.startswith("http:") and not 1 <= int(url.rpartition(":")[2]) <= MAX_PORT:
        raise ValueError(f"a port is a number from 1 to {MAX_PORT}")
    return url


class WorkerRegistration(Frozen):
    """A worker the router may use.

    `url` is `http://127.0.0.1:PORT` or `unix:/path/of/a/socket` (the near end of an SSH forward).
    `token` is what the worker asks of its callers; the router keeps it and never shows it.
    """

    url: Annotated[
        str,
        StringConstraints(pattern=r"^(http://(127\.0\.0\.1|\[::1\]|localhost):[0-9]{1,5}|unix:/.+)$"),
        AfterValidator(_reachable),
    ]
    token: Annotated[str, StringConstraints(min_length=16, max_length=256), AfterValidator(_token)]
    pool: PoolName


class WorkerHealth(StrEnum):
    """What the router believes of a worker. Only `ready` ones are given work."""

    UNKNOWN = "unknown"  # registered, not yet asked
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"
    UNREACHABLE = "unreachable"
    QUARANTINED = "quarantined"  # it answers, and its images or its failures say not to use it


class WorkerView(Frozen):
    name: WorkerName
    url: str
    pool: PoolName
    token_fingerprint: str = Field(description="First 12 hex digits of the token's SHA-256.")
    health: WorkerHealth
    reason: str = ""
    since: datetime = Field(description="When `health` last changed, UTC.")
    draining: bool = Field(description="Told to drain by the operator.")
    running: int = Field(ge=0, description="Jobs it holds a lease on now.")
    finished: int = Field(ge=0, description="Jobs it has finished.")
    model: str | None = None
    tier: str | None = None
    max_pixels: int | None = Field(default=None, description="Of the largest image that it can make.")
    version: str | None = None


class PoolView(Frozen):
    name: PoolName
    workers: int = Field(ge=0)
    ready: int = Field(ge=0)
    queued: int = Field(ge=0)
    running: int = Field(ge=0)
    succeeded: int = Field(ge=0)
    failed: int = Field(ge=0)
    cancelled: int = Field(ge=0)
    expired: int = Field(default=0, ge=0)


class PoolExpected(Frozen):
    """The pool's machines boot, and will be there within `seconds`; 0: they will not."""

    seconds: int = Field(ge=0, le=7200)


class Health(Frozen):
    """`ok` when the store answers; `pools` names those that could make an image now."""

    status: str
    version: str
    ready_pools: list[PoolName]


class Readiness(Frozen):
    """Whether to send traffic to this router, and what of. `store` and `artifacts` are `ok`, or say what is wrong;
    `pools` counts the workers that are ready."""

    ready: bool
    version: str
    store: str
    artifacts: str
    draining: bool
    pools: dict[PoolName, int]
