"""Names and numbers that every part of the contract uses."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import Field, StringConstraints

INTERACTIVE = "interactive"
BATCH = "batch"
MAX_PORT = 65_535
SOCKET_PATH_MAX = 107
"""In bytes: `sun_path` holds 108 with its closing zero (unix(7))."""

EDGE_ARTIFACTS = "/.artifacts/"
"""Below this the edge has the artifacts' folder, for the router to send files from and for nobody to ask."""

POOL_UNAVAILABLE = "pool_unavailable"
"""The type of a refusal (503) where nobody takes jobs of the pool."""
UNMAKEABLE = "unmakeable"
"""The type of a refusal (503) of one request that no registered worker can make, while others of its pool can be."""

PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
WorkerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Priority = Annotated[int, Field(strict=True, ge=-100, le=100)]
Tier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-z]{26}$")]


KeyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


def fingerprint(secret: str) -> str:
    """A name for a secret that may be shown: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]
