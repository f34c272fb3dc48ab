"""What watch sees of a real router: what waits, who works, who has not come up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.clouds import Presence
from infra.deployment import Deployment
from infra.emulate.account import Account
from infra.emulate.server import serving
from infra.emulate.spheron import KEY, SpheronApi
from infra.paths import StackPaths
from infra.planning.placement import Placed, Placement
from infra.planning.planner import placed
from infra.provider.site import Site
from infra.stack import CloudName, parse
from infra.watch.decide import PoolSeen, Seen, World
from infra.watch.observe import COMES_UP_WITHIN_S, Observer
from router.contract import BATCH, JobRequest
from tests.emulators.paced_process import paced_worker
from tests.emulators.paced_worker import Pace
from tests.integration.router.served import served_router

STACK = """\
name: observed
cloud: spheron
model: tiny
router: {{admin: {{host: 127.0.0.1, port: {admin}}}}}
pools:
  interactive: {{machines: 0, gpus: [H100-PCIe], first_port: 9101}}
  batch: {{machines: 2, market: spot, gpus: [A100-SXM-80GB], first_port: 9111, scale: {{least: 0, most: 4}}}}
"""


def machine(seen: World, name: str) -> Seen:
    return next(each for pool in seen.pools for each in pool.machines if each.placed.machine == name)


def pool(seen: World, name: str) -> PoolSeen:
    return next(each for each in seen.pools if each.name == name)


async def test_a_backlog_a_worker_at_work_and_one_that_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTERPRESS_RUN", str(tmp_path / "run"))
    paths = StackPaths.of("observed", tmp_path / "home")
    paths.create()
    _, identity = placed(paths)
    later = [0.0]
    account = Account(clock=time.time)
    with serving(SpheronApi(account)) as emulator:
        async with served_router() as router, paced_worker(Pace(step_s=0.2)) as worker:
            environ = {"SPHERON_API_KEY": KEY, "SPHERON_API_URL": emulator.url}
            admin = router.admin_url.rpartition(":")[2]
            deployment = Deployment(parse(STACK.format(admin=admin), "stack.yaml", tmp_path), paths)
            cloud = Site(paths, environ).cloud(CloudName.SPHERON)
            offer = next(each for each in await cloud.offers() if each.price == 0.82)
            placement = Placement(tuple(Placed(f"batch-{number}", offer) for number in (1, 2)))
            for each in placement.machines:
                account.rent(identity.machine(each.machine, 1), 0.82, ())
            observer = Observer(deployment, cloud, identity, time.time())

            async def look() -> World:
                return await observer.look(placement, time.time() + later[0])

            await router.use("batch-1", worker, BATCH)
            await look()
            later[0] = 60.0
            seen = await look()
            assert machine(seen, "batch-1").idle_s >= 60, "it is known, and has had nothing to do"
            assert machine(seen, "batch-2").idle_s == 0, "its worker is not known yet: it is coming up"
            assert machine(seen, "batch-2").age_s >= 60

            async with router.client() as client:
                jobs = []
                for number in range(3):
                    request = JobRequest(prompt=f"a press, {number}", width=256, height=256, steps=20, pool=BATCH)
                    jobs.append(await client.submit(request))
                seen = await look()
                assert (pool(seen, BATCH).queued or 0) >= 1
                assert pool(seen, "interactive").queued == 0
                assert {machine(seen, f"batch-{number}").idle_s for number in (1, 2)} == {0.0}

                for job in jobs:
                    await client.wait(job.id)

            later[0] = COMES_UP_WITHIN_S + 120
            await look()
            later[0] += 60
            seen = await look()
            assert machine(seen, "batch-2").idle_s >= 60, "paid for, and of no use: its pool may give it back"

            await router.stop()
            seen = await look()
            assert pool(seen, BATCH).queued is None, "a router that is away says nothing of its queue"
            assert {machine(seen, f"batch-{number}").presence for number in (1, 2)} == {Presence.THERE}
