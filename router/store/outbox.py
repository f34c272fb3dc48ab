"""`router.webhooks.Outbox` on the store's database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from router.contract import DeliveryState
from router.store import webhook_rows
from router.store.clock import Clock
from router.store.database import Database
from router.webhooks import Claim, Delivery, Verdict
from router.webhooks.signing import SECRET_BYTES


class SqlOutbox:
    def __init__(self, database: Database, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        self._database, self._clock, self._entropy = database, clock, entropy

    async def claim(self, ttl_ms: int, not_to: Sequence[str]) -> Claim | None:
        entropy = self._entropy(SECRET_BYTES)
        return await self._database.write(webhook_rows.claim, self._clock(), entropy, ttl_ms, not_to)

    async def record(self, claim: Claim, verdict: Verdict) -> bool:
        return await self._database.write(webhook_rows.record, self._clock(), claim, verdict)

    async def deliveries(self, state: DeliveryState | None, limit: int) -> Sequence[Delivery]:
        return await self._database.read(webhook_rows.every, state, limit)

    async def replay(self, delivery_id: str) -> Delivery | None:
        return await self._database.write(webhook_rows.replay, self._clock(), delivery_id)

    async def replay_dead(self) -> int:
        return await self._database.write(webhook_rows.replay_dead, self._clock())

    async def counts(self) -> Mapping[DeliveryState, int]:
        return await self._database.read(webhook_rows.counts)

    async def lag_ms(self) -> int:
        return await self._database.read(webhook_rows.lag_ms, self._clock())

    async def secrets(self, api_key_id: str) -> Sequence[str]:
        entropy = self._entropy(SECRET_BYTES)
        return await self._database.write(webhook_rows.secrets, self._clock(), entropy, api_key_id)

    async def rotate(self, api_key_id: str, overlap_ms: int) -> Sequence[str]:
        entropy = self._entropy(SECRET_BYTES)
        return await self._database.write(webhook_rows.rotate, self._clock(), entropy, api_key_id, overlap_ms)

    async def forget_ended(self, older_than_ms: int, limit: int) -> int:
        return await self._database.write(webhook_rows.forget_ended, self._clock(), older_than_ms, limit)
