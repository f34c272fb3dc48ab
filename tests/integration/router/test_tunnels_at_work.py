"""Jobs whose worker is reached through a tunnel, while the router restarts and the tunnel is cut."""

from __future__ import annotations

import httpx

from router.client import RouterClient
from router.contract import (
    INTERACTIVE,
    JobRequest,
    JobState,
    JobView,
    TunnelState,
    TunnelView,
    WorkerHealth,
    WorkerRegistration,
)
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess
from tests.integration.router.served import served_router, until
from tests.integration.router.tunnelled import Tunnels, described, socket_of
from tests.sshd import Sshd


async def through(tunnels: Tunnels, machine: Sshd, worker: PacedProcess) -> TunnelView:
    """The tunnel to the machine, once it stands; the worker is `w-1` there."""
    tunnels.describe(described(machine, w_1=worker))
    return await tunnels.becomes("m-1", TunnelState.UP)


def registration(tunnel: TunnelView, worker: PacedProcess) -> WorkerRegistration:
    return WorkerRegistration(url=f"unix:{socket_of(tunnel, 'w-1')}", token=worker.token, pool=INTERACTIVE)


async def running(client: RouterClient) -> JobView:
    """A job of which a worker has made the first step."""
    job = await client.submit(JobRequest(prompt="a press", width=256, height=256, steps=20))

    async def begun() -> bool:
        return (await client.job(job.id)).progress is not None

    await until(begun, "the job runs")
    return job


async def test_a_router_that_restarts_in_mid_job_finds_its_worker_where_it_was(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    await a.pace(Pace(step_s=0.2, heartbeat_s=0.2))
    tunnel = await through(tunnels, machine, a)
    async with served_router(TUNNELS_STATUS_FILE=str(tunnels.status)) as router, router.admin() as admin:
        await admin.register("w-1", registration(tunnel, a))

        async def ready() -> bool:
            return (await admin.worker("w-1")).health is WorkerHealth.READY

        await until(ready, "the worker is ready, through the tunnel")
        async with router.client() as client:
            job = await running(client)
            await router.stop()
            await router.start()
            ended = await client.wait(job.id)
        assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 1)
        assert (await admin.tunnels()).tunnels == tunnels.view().tunnels
        async with httpx.AsyncClient(base_url=router.admin_url, trust_env=False) as http:
            metrics = (await http.get("/metrics")).text
        assert 'letterpress_tunnels{state="up"} 1.0' in metrics
    assert (await a.ledger()).finished == [f"{job.id}.1"]
    after = tunnels.tunnel("m-1")
    assert after
    assert after.since == tunnel.since


async def test_a_job_whose_tunnel_is_cut_is_joined_and_made_once(
    tunnels: Tunnels, machine: Sshd, a: PacedProcess
) -> None:
    await a.pace(Pace(step_s=0.3, heartbeat_s=0.2))
    tunnel = await through(tunnels, machine, a)
    async with served_router(LEASE_TTL_S="30") as router, router.admin() as admin, router.client() as client:
        await admin.register("w-1", registration(tunnel, a))
        job = await running(client)
        machine.cut()
        assert (await client.wait(job.id)).state is JobState.SUCCEEDED
