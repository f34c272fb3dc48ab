"""Whether traffic should come here: what `/readyz` says on both apps.

It is no when a job could not be taken on, kept or answered: the store or the artifact store does not do its part, or
the router is leaving. Workers are told of and do not count, because jobs wait for them: a router that left the load
balancer whenever a pool restarts would turn every client away. Who wants to know about a pool asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from router.artifacts import Artifacts
from router.contract import Readiness, WorkerHealth
from router.core import Core
from router.errors import ArtifactError, StoreUnavailableError
from router.store import Store

STORE_EVERY_S = 15.0
"""Between two small writes that try whether a job could be kept; between them the store is only asked to answer."""
ARTIFACTS_EVERY_S = 15.0
"""Between two writes that try whether an image could be stored: each is a request to a bucket."""
ARTIFACTS_WITHIN_S = 5.0


class Examiner:
    """Keeps what came of its writes to both stores for a while. `draining` tells whether the router is leaving."""

    def __init__(
        self, core: Core, version: str, draining: Callable[[], bool], now: Callable[[], float] = monotonic
    ) -> None:
        self._core, self._version, self._draining, self._now = core, version, draining, now
        self._examining = asyncio.Lock()
        self._found: tuple[float, str] | None = None
        self._trying = asyncio.Lock()
        self._took: tuple[float, str] | None = None

    async def examine(self, pool: str | None = None) -> Readiness:
        """With `pool`, also whether a worker of it is ready."""
        store = await self._store()
        artifacts = await self._artifacts()
        pools: dict[str, int] = {}
        for view in self._core.fleet.views():
            ready = view.health is WorkerHealth.READY and not view.draining
            pools[view.pool] = pools.get(view.pool, 0) + ready
        draining = self._draining()
        ready = store == artifacts == "ok" and not draining and (pool is None or pools.get(pool, 0) > 0)
        return Readiness(
            ready=ready, version=self._version, store=store, artifacts=artifacts, draining=draining, pools=pools
        )

    async def _store(self) -> str:
        try:
            await self._core.store.ping()
        except StoreUnavailableError as error:
            return str(error)
        async with self._trying:
            if self._took is None or self._now() - self._took[0] >= STORE_EVERY_S:
                self._took = self._now(), await _write_a_row(self._core.store)
            return self._took[1]

    async def _artifacts(self) -> str:
        async with self._examining:
            if self._found is None or self._now() - self._found[0] >= ARTIFACTS_EVERY_S:
                self._found = self._now(), await _write_to(self._core.artifacts)
            return self._found[1]


async def _write_a_row(store: Store) -> str:
    """The store's own bounds on locks and answers hold: one that is busy is no reason to send traffic away."""
    try:
        await store.check_writes()
    except StoreUnavailableError as error:
        return str(error)
    return "ok"


async def _write_to(artifacts: Artifacts) -> str:
    try:
        async with asyncio.timeout(ARTIFACTS_WITHIN_S):
            await artifacts.check()
    except ArtifactError as error:
        return str(error)
    except TimeoutError:
        return f"the artifact store did not take a small object within {ARTIFACTS_WITHIN_S:g} s"
    return "ok"
