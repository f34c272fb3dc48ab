"""Webhooks: telling a job's owner by HTTP that it has ended (Standard Webhooks, https://www.standardwebhooks.com).

Apart from making images: the transaction that ends a job writes a delivery into the outbox, and `deliverer` works
that off, at least once, for days if need be. What becomes of a delivery after a try is `schedule`'s, whom we may
connect to `addresses`'s, the signature `signing`'s, the one HTTP request `post`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from router.contract import DeliveryState, WebhookType
from router.jobs import Job


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one URL. `attempt` counts the tries that were ever begun and never goes back, `tries`
    those since it was promised or last replayed. Times are the database's, in milliseconds. `status` and `detail`
    tell of the last try that ended."""

    id: str
    api_key_id: str
    url: str
    event: WebhookType
    subject: str
    created_at: int
    state: DeliveryState
    attempt: int
    tries: int
    due_at: int
    ended_at: int | None
    status: int | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to try a delivery, until its lease runs out. `secrets` sign it, the newest first."""

    delivery: Delivery
    secrets: Sequence[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivered:
    status: int


@dataclass(frozen=True, slots=True)
class Again:
    """Another try in `pause_ms`, because of `detail`."""

    pause_ms: int
    status: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Dead:
    """No other try. `gone`: the receiver said so for good, and gets nothing more at this URL."""

    status: int | None
    detail: str
    gone: bool = False


Verdict = Delivered | Again | Dead


class Outbox(Protocol):
    """Every method is one transaction. May raise StoreUnavailableError; then nothing has changed."""

    async def claim(self, ttl_ms: int, not_to: Sequence[str]) -> Claim | None:
        """A lease on the delivery that is due longest, to none of the hosts `not_to`; its attempt goes up by one."""
        ...

    async def record(self, claim: Claim, verdict: Verdict) -> bool:
        """Carry the verdict out if the attempt is still this one; whether it was."""
        ...

    async def deliveries(self, state: DeliveryState | None, limit: int) -> Sequence[Delivery]:
        """The newest first."""
        ...

    async def replay(self, delivery_id: str) -> Delivery | None:
        """Due now, with all its tries before it, also to a URL that was given up; None if there is none."""
        ...

    async def replay_dead(self) -> int:
        """All that are dead; how many."""
        ...

    async def counts(self) -> Mapping[DeliveryState, int]: ...

    async def lag_ms(self) -> int:
        """For how long the oldest that is due has been so; 0 if none is."""
        ...

    async def secrets(self, api_key_id: str) -> Sequence[str]:
        """The key's secrets that sign now, the newest first; one is drawn if there is none."""
        ...

    async def rotate(self, api_key_id: str, overlap_ms: int) -> Sequence[str]:
        """A new secret; the ones before go on signing along for `overlap_ms`."""
        ...

    async def forget_ended(self, older_than_ms: int, limit: int) -> int:
        """Remove at most `limit` deliveries that ended so long ago; how many."""
        ...


def host_of(url: str) -> str:
    """The name, and the port if it is not the scheme's own: who shares its places with whom. URLs have passed
    `router.contract`'s check before they are stored."""
    return url.partition("://")[2].partition("/")[0].partition("?")[0].lower()


def type_of(job: Job) -> WebhookType:
    return WebhookType(f"job.{job.state.value}")
