"""The admin app's client: workers come, drain and go."""

from __future__ import annotations

from datetime import date
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from router.client.http import HttpClient
from router.contract import (
    DeliveryState,
    DeliveryView,
    Health,
    KeyLimitsView,
    KeyRequest,
    KeyView,
    NewKey,
    PoolExpected,
    PoolView,
    Replayed,
    TunnelsView,
    UsageView,
    WorkerRegistration,
    WorkerView,
)

_WORKER = TypeAdapter(WorkerView)
_WORKERS = TypeAdapter(list[WorkerView])
_POOLS = TypeAdapter(list[PoolView])
_TUNNELS = TypeAdapter(TunnelsView)
_DELIVERY = TypeAdapter(DeliveryView)
_DELIVERIES = TypeAdapter(list[DeliveryView])
_REPLAYED = TypeAdapter(Replayed)
_HEALTH = TypeAdapter(Health)
_KEY = TypeAdapter(KeyView)
_KEYS = TypeAdapter(list[KeyView])
_NEW_KEY = TypeAdapter(NewKey)
_USAGE = TypeAdapter(list[UsageView])


class AdminClient(HttpClient):
    """Speaks to the admin app at `base_url` (on the router host's loopback, or the near end of a forward).

    `admin_key` may be empty for a client that only reads. Every method raises RouterAwayError when nobody
    answers and RouterRefusedError (or a subclass) when the router says no.
    """

    def __init__(self, base_url: str, admin_key: str = "", transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(base_url, admin_key, transport)

    async def health(self) -> Health:
        """RouterUnavailableError while the router's store does not answer."""
        return await self._read(_HEALTH, "GET", "/healthz")

    async def metrics(self) -> str:
        """Prometheus' text."""
        return (await self._call("GET", "/metrics")).text

    async def workers(self) -> list[WorkerView]:
        return await self._read(_WORKERS, "GET", "/workers")

    async def worker(self, name: str) -> WorkerView:
        """RouterNotFoundError if no worker of this name is registered."""
        return await self._read(_WORKER, "GET", _path(name))

    async def register(self, name: str, registration: WorkerRegistration) -> WorkerView:
        """Make the router use this worker as described; again with the same description changes nothing."""
        return await self._read(_WORKER, "PUT", _path(name), registration.model_dump())

    async def drain(self, name: str) -> WorkerView:
        """Give the worker no new job. What runs is finished: `running` of its view goes to 0."""
        return await self._read(_WORKER, "POST", f"{_path(name)}/drain")

    async def release(self, name: str) -> WorkerView:
        """Trust a worker in quarantine again."""
        return await self._read(_WORKER, "POST", f"{_path(name)}/release")

    async def remove(self, name: str) -> None:
        """Forget the worker; gone is success. What it was running is tried again elsewhere."""
        await self._call("DELETE", _path(name))

    async def webhooks(self, state: DeliveryState | None = None, limit: int = 100) -> list[DeliveryView]:
        """The newest first."""
        wanted = f"limit={limit}" + (f"&state={state.value}" if state is not None else "")
        return await self._read(_DELIVERIES, "GET", f"/webhooks?{wanted}")

    async def replay(self, delivery_id: str) -> DeliveryView:
        """RouterNotFoundError if there is no such webhook."""
        return await self._read(_DELIVERY, "POST", f"/webhooks/{quote(delivery_id, safe='')}/replay")

    async def replay_dead(self) -> int:
        """How many were dead, and are due now."""
        return (await self._read(_REPLAYED, "POST", "/webhooks/replay")).count

    async def tunnels(self) -> TunnelsView:
        """As the tunnel service of the router's host wrote them down last."""
        return await self._read(_TUNNELS, "GET", "/tunnels")

    async def pools(self) -> list[PoolView]:
        return await self._read(_POOLS, "GET", "/pools")

    async def expect(self, pool: str, seconds: int) -> None:
        """The pool's machines boot: take jobs on for it, though no worker is registered yet."""
        await self._call("PUT", f"/pools/{quote(pool, safe='')}/expected", PoolExpected(seconds=seconds).model_dump())

    async def keys(self) -> list[KeyView]:
        return await self._read(_KEYS, "GET", "/keys")

    async def create_key(self, request: KeyRequest) -> NewKey:
        """The one time that the key itself is shown. RouterRefusedError (409) if the name is taken."""
        return await self._read(_NEW_KEY, "POST", "/keys", request.model_dump())

    async def limit_key(self, name: str, limits: KeyLimitsView) -> KeyView:
        return await self._read(_KEY, "PUT", f"{_key_path(name)}/limits", limits.model_dump())

    async def revoke_key(self, name: str) -> KeyView:
        """Nobody is let in with it from now on; again is the same."""
        return await self._read(_KEY, "DELETE", _key_path(name))

    async def usage(self, name: str, since: date | None = None) -> list[UsageView]:
        """By day; of the last 30 days unless `since` says otherwise."""
        query = "" if since is None else f"?since={since.isoformat()}"
        return await self._read(_USAGE, "GET", f"{_key_path(name)}/usage{query}")


def _key_path(name: str) -> str:
    return f"/keys/{quote(name, safe='')}"


def _path(name: str) -> str:
    return f"/workers/{quote(name, safe='')}"
