"""A new image rolls over the machines worker by worker, stops at the first that does not become ready, and goes back;
somebody who asks for images all the time notices nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from router.client import RouterAwayError, RouterUnavailableError
from router.contract import JobRequest, WorkerHealth
from tests.integration.infra.hosts_rig import HostsRig, hosts_rig

ASKED = JobRequest(prompt="a press", width=256, height=256, steps=1)


@dataclass
class Asking:
    """Two clients that ask all the time; how many images they got, how often nobody was there to take a request, and
    the most workers that drained at once."""

    images: int = 0
    away: int = 0
    drained: set[str] = field(default_factory=set)
    at_once: int = 0


@asynccontextmanager
async def asking(rig: HostsRig) -> AsyncIterator[Asking]:
    """What a client raises is raised at the end."""
    seen = Asking()
    over = asyncio.Event()

    async def ask() -> None:
        async with rig.client() as client:
            while not over.is_set():
                try:
                    await client.generate(ASKED)
                except (RouterAwayError, RouterUnavailableError):
                    seen.away += 1
                    await asyncio.sleep(0.2)
                else:
                    seen.images += 1

    async def watch() -> None:
        async with rig.admin() as admin:
            while not over.is_set():
                await asyncio.sleep(0.1)
                try:
                    draining = {one.name for one in await admin.workers() if one.draining}
                except (RouterAwayError, RouterUnavailableError):
                    continue  # what nobody was refused for is counted above
                seen.drained |= draining
                seen.at_once = max(seen.at_once, len(draining))

    async with asyncio.TaskGroup() as tasks:
        for what in (ask, ask, watch):
            tasks.create_task(what())
        try:
            yield seen
        finally:
            over.set()


def images_of(rig: HostsRig) -> dict[str, str]:
    """By machine, what its worker's unit runs."""
    look = "cat /etc/systemd/system/letterpress-*-interactive-*.service"
    units = {name: one.inside("sh", "-c", look) for name, one in rig.machines.items()}
    return {name: text.split("registry.test/worker:")[1].split()[0].strip('"') for name, text in units.items()}


async def test_a_new_image_rolls_over_the_workers_and_a_broken_one_is_taken_back(
    tmp_path: Path,
) -> None:
    async with hosts_rig(tmp_path, 2) as rig:
        await rig.up()
        assert rig.failed == {}

        rig.image = "registry.test/worker:2"
        async with asking(rig) as seen:
            await rig.up()
        assert rig.failed == {}
        assert seen.drained == {"interactive-1", "interactive-2"}
        assert seen.at_once == 1
        assert seen.images
        assert seen.away == 0
        assert images_of(rig) == {"h1": "2", "h2": "2"}

        rig.image = "registry.test/worker:broken"
        async with asking(rig) as seen:
            await rig.up()
        (touched,) = seen.drained
        said = rig.failed.pop(f"{touched}-workers")
        assert "no such engine" in said
        assert f"{touched} was put back as it was before and is ready again, and no other worker was touched" in said
        (others,) = rig.failed.values()
        assert "stays as it is, because" in others
        assert seen.images
        assert seen.away == 0
        assert images_of(rig) == {"h1": "2", "h2": "2"}
        async with rig.admin() as admin:
            assert not any(one.draining for one in await admin.workers())

        rig.image = "registry.test/worker:2"
        before = {name: one.inside("sh", "-c", "cat /run/standin-docker/*") for name, one in rig.machines.items()}
        await rig.up()
        assert rig.failed == {}
        after = {name: one.inside("sh", "-c", "cat /run/standin-docker/*") for name, one in rig.machines.items()}
        assert after == before, "the version that was come from is what runs"


async def test_workers_are_replaced_one_by_one_though_the_same_deploy_replaces_the_router(tmp_path: Path) -> None:
    """A router on this computer is nobody's to wait for: it goes while its workers are to be drained."""
    async with hosts_rig(tmp_path, 2) as rig:
        await rig.up()
        assert rig.failed == {}
        before = rig.router_pid()
        rig.image, rig.allow = "registry.test/worker:2", "192.0.2.2/32"
        async with asking(rig) as seen:
            await rig.up()
            had = seen.images
            async with asyncio.timeout(30):
                while seen.images < had + 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        assert rig.failed == {}
        assert rig.router_pid() != before
        assert "waiting for the router, which is away" in "\n".join(rig.said)
        assert images_of(rig) == {"h1": "2", "h2": "2"}
        assert seen.at_once <= 1
        async with rig.admin() as admin:
            workers = await admin.workers()
        assert [(one.health, one.draining) for one in workers] == [(WorkerHealth.READY, False)] * 2
