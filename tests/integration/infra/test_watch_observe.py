"""What watch sees of a real router: what waits, who works, who has not come up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from infra.clouds import Presence
from infra.clouds.spheron import SpheronCloud
from infra.deployment import Deployment
from infra.emulate.account import Account
from infra.emulate.machines import Reach
from infra.emulate.server import serving
from infra.emulate.spheron import KEY, SpheronApi
from infra.paths import StackPaths
from infra.planning.placement import Placed, Placement
from infra.planning.planner import placed
from infra.provider.site import Site
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.stack import CloudName, parse
from infra.watch.decide import PoolSeen, Seen, World
from infra.watch.observe import COMES_UP_WITHIN_S, Observer
from router.contract import BATCH, JobRequest, WorkerHealth
from tests.emulators.paced_process import paced_worker
from tests.emulators.paced_worker import Pace
from tests.integration.router.served import served_router, until
from tests.sshd import sshd
from tests.waiting import eventually

STACK = """\
name: observed
cloud: spheron
model: tiny
router: {{{host}admin: {{host: 127.0.0.1, port: {admin}}}}}
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
            deployment = Deployment(parse(STACK.format(admin=admin, host=""), "stack.yaml", tmp_path), paths)
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


@contextmanager
def greeting(words: bytes) -> Iterator[int]:
    """The port of somebody who says so to whoever connects, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as one:
                        one.sendall(words)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_a_machine_is_silent_when_neither_the_router_nor_watch_reaches_it_though_it_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTERPRESS_RUN", str(tmp_path / "run"))
    paths = StackPaths.of("observed", tmp_path / "home")
    paths.create()
    _, identity = placed(paths)
    account = Account()
    with serving(SpheronApi(account)) as emulator, greeting(b"SSH-2.0-x\r\n") as port, greeting(b"") as proxy:
        async with served_router() as router, paced_worker() as worker:
            deployment = Deployment(
                parse(STACK.format(admin=router.admin_url.rpartition(":")[2], host=""), "s", tmp_path), paths
            )
            cloud = Site(paths, {"SPHERON_API_KEY": KEY, "SPHERON_API_URL": emulator.url}).cloud(CloudName.SPHERON)
            offer = next(each for each in await cloud.offers() if each.price == 0.82)
            placement = Placement((Placed("batch-1", offer),))
            rental = account.rent(identity.machine("batch-1", 1), 0.82, ())
            nobody, somebody = rental.reach, Reach("127.0.0.1", port, "ubuntu")
            assert isinstance(cloud, SpheronCloud)
            observer = Observer(deployment, replace(cloud, fresh_s=0.0), identity, time.time())

            async def look() -> Seen:
                return machine(await observer.look(placement, time.time()), "batch-1")

            async def unreachable() -> bool:
                async with router.admin() as admin:
                    return (await admin.worker("batch-1")).health is WorkerHealth.UNREACHABLE

            await router.use("batch-1", worker, BATCH)
            seen = await look()
            assert (seen.serves, seen.silent_since) == (True, None)

            await worker.kill()
            await until(unreachable, "the router misses it")
            rental.reach = somebody
            assert (await look()).silent_since is None, "its sshd greets: that is another trouble"
            rental.reach = Reach("127.0.0.1", proxy, "ubuntu")
            assert (await look()).silent_since is not None, "that somebody takes the connection is not enough"
            rental.reach = nobody
            first = await look()
            assert (first.serves, first.presence) == (False, Presence.THERE)
            assert first.silent_since is not None
            assert (await look()).silent_since == first.silent_since, "since then"

            watch_began_later = Observer(deployment, observer.cloud, identity, time.time())
            seen = machine(await watch_began_later.look(placement, time.time()), "batch-1")
            assert seen.silent_since is None, "perhaps it boots still, and what the router misses was before it"
            old = time.time() + COMES_UP_WITHIN_S + 1
            seen = machine(await watch_began_later.look(placement, old), "batch-1")
            assert seen.silent_since == old

            await worker.begin_again()
            await router.use("batch-1", worker, BATCH)
            assert (await look()).silent_since is None


async def test_a_router_on_a_machine_of_its_own_is_asked_through_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTERPRESS_RUN", str(tmp_path / "run"))
    paths = StackPaths.of("observed", tmp_path / "home")
    paths.create()
    _, identity = placed(paths)
    with serving(SpheronApi()) as emulator:
        async with served_router() as router, sshd(tmp_path / "sshd") as front:
            own = ensure_key(tmp_path / "own", LOGIN)
            (front.folder / "authorized_keys").write_text(public_line(own, "operator") + "\n")
            reached = f"address: 127.0.0.1, port: {front.port}, user: {front.user}, key: {own}"
            host = f"host: {{{reached}}}, edge: {{tls: {{certificate: c.pem, key: k.pem}}}}, "
            admin = router.admin_url.rpartition(":")[2]
            deployment = Deployment(parse(STACK.format(admin=admin, host=host), "stack.yaml", tmp_path), paths)
            environ = {"SPHERON_API_KEY": KEY, "SPHERON_API_URL": emulator.url}
            cloud = Site(paths, environ).cloud(CloudName.SPHERON)
            observer = Observer(deployment, cloud, identity, time.time())
            assert pool(await observer.look(Placement(), time.time()), BATCH).queued == 0
            # It is watch that ends its connection; sshd has only to hear of it.
            eventually(lambda: front.connections() == [], 10, "a look leaves no connection behind")

            await front.stop()
            seen = await observer.look(Placement(), time.time())
            assert pool(seen, BATCH).queued is None, "that there is a way to its port without SSH is of no use"
