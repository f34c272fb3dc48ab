"""The way from the router to a worker: what becomes of it when a destroy or a deploy is broken off, and
when the tunnel service ends."""

from __future__ import annotations

from pathlib import Path

from infra.bootstrap.facts import ENOUGH_DISK
from infra.hosts.remote import stack_folder
from infra.provider.place import RouterPlace
from infra.provider.registration import RegistrationResource, RegistrationState
from infra.provider.resource import Condition
from infra.provider.tunnels import MACHINES, UNIT
from router.contract import JobRequest, TunnelMachines, WorkerHealth
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


async def test_a_tunnel_service_that_does_not_run_is_started_by_the_next_deploy(tmp_path: Path) -> None:
    """As after a restart of this computer, where nothing starts what a deploy has started."""
    async with hosts_rig(tmp_path, 1) as rig:
        await rig.up()
        await rig.until(WorkerHealth.READY)
        await RouterPlace(rig.site(), None).host().remove(UNIT, rig.said.append)
        await rig.until(WorkerHealth.UNREACHABLE)

        await rig.look()
        assert (rig.worker_host().condition, rig.worker_host().reason) == (
            Condition.DIFFERENT,
            "the tunnel service does not run",
        )
        await rig.up()
        assert not rig.failed
        await rig.until(WorkerHealth.READY)
        async with rig.client() as client:
            assert (await client.generate(ASKED)).startswith(b"\x89PNG")


async def test_a_machine_that_is_somewhere_else_now_is_told_to_the_tunnel_service(tmp_path: Path) -> None:
    async with hosts_rig(tmp_path, 1) as rig:
        await rig.up()
        file = rig.paths.router / MACHINES
        known = TunnelMachines.model_validate_json(file.read_bytes())
        (machine,) = known.machines
        before = machine.model_copy(update={"host": "192.0.2.9", "port": 2222})
        file.write_text(TunnelMachines(machines=[before]).model_dump_json())

        await rig.look()
        assert rig.worker_host().condition is Condition.DIFFERENT, "or the service would dial the old address for ever"
        assert "192.0.2.9:2222, where it is no more" in rig.worker_host().reason
        await rig.up()
        assert TunnelMachines.model_validate_json(file.read_bytes()) == known
        await rig.until(WorkerHealth.READY)


async def test_a_deploy_that_stopped_early_is_gone_on_with_though_the_workers_of_the_last_one_run(
    tmp_path: Path,
) -> None:
    async with hosts_rig(tmp_path, 1) as rig:
        await rig.up()
        await rig.until(WorkerHealth.READY)
        rig.disk_gib = 10_000.0
        rig.machines["h1"].inside("sh", "-c", f"rm {stack_folder('*')}/{ENOUGH_DISK}")  # or it is asked no more
        await rig.up()
        assert rig.failed, "the machine has no such disk"
        await rig.look()
        assert (rig.worker_host().condition, rig.worker_host().reason) == (
            Condition.DIFFERENT,
            "its last deploy did not finish",
        )
