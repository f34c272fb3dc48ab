"""The way from the router to a worker: what becomes of it when a destroy is broken off."""

from __future__ import annotations

from pathlib import Path

from infra.provider.registration import RegistrationResource, RegistrationState
from infra.provider.resource import Condition
from router.contract import JobRequest, WorkerHealth
from tests.integration.infra.hosts_rig import HostsRig, hosts_rig

ASKED = JobRequest(prompt="a press", width=256, height=256, steps=1)


async def registration_destroyed(rig: HostsRig) -> None:
    """As far as a destroy comes that is broken off before the worker's machine."""
    (name,) = (name for name, state in rig.known.items() if isinstance(state, RegistrationState))
    site, state = rig.site(), rig.known.pop(name)
    assert isinstance(state, RegistrationState)
    try:
        await RegistrationResource(site).delete(state, rig.said.append)
    finally:
        site.connections.close()


async def test_a_way_that_a_broken_off_destroy_closed_is_opened_again_by_the_next_deploy(tmp_path: Path) -> None:
    async with hosts_rig(tmp_path, 1) as rig:
        await rig.up()
        await rig.until(WorkerHealth.READY)
        rig.machines["h1"].network.pull_the_cable()
        await rig.until(WorkerHealth.UNREACHABLE)
        await registration_destroyed(rig)
        rig.machines["h1"].network.put_it_back()

        await rig.look()
        assert rig.worker_host().condition is Condition.DIFFERENT, "or the next deploy would see nothing to do"
        assert "does not know the way" in rig.worker_host().reason
        await rig.up()
        await rig.until(WorkerHealth.READY)
        async with rig.client() as client:
            assert (await client.generate(ASKED)).startswith(b"\x89PNG")
        await rig.look()
        assert rig.worker_host().condition is Condition.RUNNING


async def test_a_way_whose_tunnel_stands_outlives_its_workers_registration(tmp_path: Path) -> None:
    """It goes with the machine: a destroy that is broken off between the two has nothing to be mended."""
    async with hosts_rig(tmp_path, 1) as rig:
        await rig.up()
        await rig.until(WorkerHealth.READY)
        await registration_destroyed(rig)
        await rig.look()
        assert rig.worker_host().condition is Condition.RUNNING
