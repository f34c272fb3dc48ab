"""Replacing a worker that serves: drained first, one at a time, put back as it was if the new one does not come up.

No request fails meanwhile: a drained worker finishes what it has, and what waits is another's or waits a little longer.
Once one did not come back, the others stay as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from infra.errors import InfraError
from infra.hosts import Progress
from infra.hosts.container import ContainerHost
from infra.hosts.ssh import SshHost
from infra.provider.place import RouterPlace
from infra.provider.resource import ProviderError
from infra.secrets import worker_token
from router.client import AdminClient, RouterAwayError, RouterClientError, RouterNotFoundError, RouterUnavailableError
from router.contract import WorkerRegistration, WorkerView

DRAIN_S = 300.0
"""The largest image on the slowest card, and the one behind it."""
ROUTER_BACK_S = 60.0
"""The same deploy may have replaced the router; one that is away for longer sends nobody anything."""
POLL_S = 0.3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One worker's. `begin` replaces it and returns when it is ready, `ready` waits until what runs of it is."""

    place: RouterPlace
    admin_url: str
    worker: str
    host: SshHost | ContainerHost
    begin: Callable[[], Awaitable[None]]
    ready: Callable[[], Awaitable[None]]
    progress: Progress

    async def run(self) -> None:
        """Raises ProviderError if it, or one before it, does not become ready."""
        self.progress("waiting for its turn to be replaced")
        async with self.place.site.upgrades.one_at_a_time:
            if failed := self.place.site.upgrades.failed:
                raise ProviderError(
                    f"{self.worker} stays as it is, because {failed} did not become ready when it was replaced"
                )
            async with self._drained():
                before = await self.host.keep_previous(self.worker)
                try:
                    await self.begin()
                except InfraError as error:
                    self.place.site.upgrades.failed = self.worker
                    raise ProviderError(f"{error}\n{await self._back(before)}") from error

    async def _back(self, before: bytes | None) -> str:
        """Put it back as it was before; how that went, for people."""
        others = "and no other worker was touched"
        if before is None:
            return f"What ran before is not known, so {self.worker} is left as it is, {others}"
        self.progress("putting it back as it was")
        try:
            await self.host.restore(self.worker, before)
            await self.ready()
        except InfraError as error:
            return f"{self.worker} was put back as it was before, {others}; but it does not become ready again: {error}"
        return f"{self.worker} was put back as it was before and is ready again, {others}"

    @asynccontextmanager
    async def _drained(self) -> AsyncIterator[None]:
        """The worker gets no jobs and has none, until it is registered again."""
        view = await self._asked(self._drain)
        try:
            yield
        finally:
            if view is not None:
                again = WorkerRegistration(
                    url=view.url, token=self.place.site.secrets.ensure(worker_token(self.worker)), pool=view.pool
                )
                await self._asked(lambda admin: admin.register(self.worker, again))

    async def _drain(self, admin: AdminClient) -> WorkerView | None:
        """What the router knows of it; None if it does not know it."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while (view := await admin.drain(self.worker)).running:
                    self.progress(f"draining: {view.running} job(s) still running")
                    await asyncio.sleep(POLL_S)
        except RouterNotFoundError:
            return None
        except TimeoutError:
            self.progress("still busy; its job gets another attempt elsewhere")
            return await admin.worker(self.worker)
        return view

    async def _asked(self, ask: Callable[[AdminClient], Awaitable[T]]) -> T | None:
        """The router's answer; None from one that stays away. Raises ProviderError for what it refuses."""
        clock = asyncio.get_running_loop().time
        until = clock() + ROUTER_BACK_S
        while True:
            try:
                async with self.place.admin(self.admin_url) as admin:
                    return await ask(admin)
            except (RouterAwayError, RouterUnavailableError):
                if clock() > until:
                    return None
                self.progress("waiting for the router, which is away")
                await asyncio.sleep(POLL_S)
            except RouterClientError as error:
                raise ProviderError(
                    f"{self.worker} could not be drained and registered again: {error}. See `make status`, deploy again"
                ) from error
