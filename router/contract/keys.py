"""API keys: their limits, and what their images have cost."""

from __future__ import annotations

from datetime import date, datetime

from pydantic import Field

from router.contract.names import KeyName, PoolName
from worker.contract import Frozen


class KeyLimitsView(Frozen):
    """What is absent is not limited.

    `running` jobs may run at once, more wait; `waiting` more may wait in each pool, further ones are refused.
    """

    per_minute: int | None = Field(default=None, ge=1, le=1_000_000, description="Requests that create jobs.")
    running: int | None = Field(default=None, ge=1, le=100_000)
    waiting: int | None = Field(default=None, ge=0, le=10_000_000)
    pools: list[PoolName] | None = Field(default=None, description="The only ones that it may use.")


class KeyRequest(Frozen):
    name: KeyName
    limits: KeyLimitsView = KeyLimitsView()


class KeyView(Frozen):
    """An API key as its operator sees it. Times are UTC."""

    id: str
    name: str
    fingerprint: str = Field(description="First 12 hex digits of the key's SHA-256.")
    created_at: datetime
    revoked_at: datetime | None = None
    limits: KeyLimitsView


class NewKey(KeyView):
    key: str = Field(description="The key itself. It is shown this once, and kept nowhere.")


class UsageView(Frozen):
    """What a key's images of one day (UTC) have cost."""

    day: date
    images: int = Field(ge=0)
    pixels: int = Field(ge=0)
    gpu_seconds: float = Field(ge=0)
