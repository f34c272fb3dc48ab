"""Replacing a worker that serves: drained first, one at a time, put back as it was if the new one does not come up.

No request fails meanwhile: a drained worker finishes what it has, and what waits is another's or waits a little longer.
Once one did not come back, the others stay as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from infra.errors import InfraError
from infra.hosts import Progress
from infra.hosts.container import ContainerHost
from infra.hosts.ssh import SshHost
from infra.provider.resource import ProviderError
from infra.provider.site import Site
from infra.secrets import ADMIN_KEY, worker_token
from router.client import AdminClient, RouterClientError, RouterNotFoundError
from router.contract import WorkerRegistration, WorkerView

DRAIN_S = 300.0
"""The largest image on the slowest card, and the one behind it."""
POLL_S = 0.3


async def upgrade(
    site: Site,
    admin_url: str,
    worker: str,
    host: SshHost | ContainerHost,
    begin: Callable[[], Awaitable[None]],
    progress: Progress,
) -> None:
    """`begin` replaces the worker and returns when it is ready. ProviderError if it, or one before it, is not."""
    progress("waiting for its turn to be replaced")
    async with site.upgrades.one_at_a_time:
        if site.upgrades.failed:
            raise ProviderError(
                f"{worker} stays as it is, because {site.upgrades.failed} did not become ready when it was replaced"
            )
        try:
            async with AdminClient(admin_url, site.secrets.ensure(ADMIN_KEY)) as admin:
                view = await _drained(admin, worker, progress)
                before = await host.keep_previous(worker)
                try:
                    await begin()
                except InfraError as error:
                    site.upgrades.failed = worker
                    await _back(host, worker, before, progress)
                    raise ProviderError(
                        f"{error}\n{worker} was put back as it was before, and no other worker was touched"
                    ) from error
                finally:
                    if view:
                        token = site.secrets.ensure(worker_token(worker))
                        await admin.register(worker, WorkerRegistration(url=view.url, token=token, pool=view.pool))
        except RouterClientError as error:
            raise ProviderError(f"{worker} could not be drained: {error}. `make status`, then deploy again") from error


async def _drained(admin: AdminClient, worker: str, progress: Progress) -> WorkerView | None:
    """What the router knew of it; None if it did not know it."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while (view := await admin.drain(worker)).running:
                progress(f"draining: {view.running} job(s) still running")
                await asyncio.sleep(POLL_S)
    except RouterNotFoundError:
        return None
    except TimeoutError:
        return await admin.worker(worker)
    return view


async def _back(host: SshHost | ContainerHost, worker: str, before: bytes | None, progress: Progress) -> None:
    if before is not None:
        progress("putting it back as it was")
        await host.restore(worker, before)
