"""A machine that was made anew at the same address: nobody speaks with it until a person says that it is meant."""

from __future__ import annotations

import asyncio
from pathlib import Path

from infra.provider.resource import Condition
from infra.ssh.pins import Pins
from router.contract import JobRequest, WorkerHealth
from tests.integration.infra.hosts_rig import ENOUGH_S, HostsRig, hosts_rig

ASKED = JobRequest(prompt="a press", width=256, height=256, steps=1)


async def looked_until_it_runs(rig: HostsRig) -> None:
    """The machine has booted, and its unit with it."""
    async with asyncio.timeout(ENOUGH_S):
        await rig.look()
        while [unit.condition for unit in rig.worker_host().units] != [Condition.RUNNING]:
            await asyncio.sleep(0.2)
            await rig.look()


async def test_a_host_key_taken_anew_reaches_the_tunnel_service_with_the_next_deploy(tmp_path: Path) -> None:
    async with hosts_rig(tmp_path, 1) as rig:
        await rig.up()
        await rig.until(WorkerHealth.READY)

        rig.machines["h1"].new_host_key()
        await rig.until(WorkerHealth.UNREACHABLE)
        await rig.look()
        assert rig.worker_host().condition is Condition.UNKNOWN

        Pins(rig.paths.known_hosts).forget(rig.worker_host().machine)
        await looked_until_it_runs(rig)
        assert rig.worker_host().condition is Condition.DIFFERENT, "or the next deploy would see nothing to do"
        assert "its host key is another one than the tunnel service was told" in rig.worker_host().reason
        await rig.up()
        await rig.until(WorkerHealth.READY)
        async with rig.client() as client:
            assert (await client.generate(ASKED)).startswith(b"\x89PNG")
        await rig.look()
        assert rig.worker_host().condition is Condition.RUNNING


async def test_a_host_key_taken_anew_after_a_deploy_that_it_stopped_reaches_the_tunnel_service_too(
    tmp_path: Path,
) -> None:
    async with hosts_rig(tmp_path, 1) as rig:
        await rig.up()
        await rig.until(WorkerHealth.READY)

        rig.machines["h1"].new_host_key()
        await rig.look()
        await rig.up()
        assert rig.failed, "a person has to say that it is meant"

        Pins(rig.paths.known_hosts).forget(rig.worker_host().machine)
        await looked_until_it_runs(rig)
        assert rig.worker_host().condition is Condition.DIFFERENT, "or the next deploy would see nothing to do"
        await rig.up()
        await rig.until(WorkerHealth.READY)
