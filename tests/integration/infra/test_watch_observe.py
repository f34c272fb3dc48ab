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
from infra.emulate.server import Emulator, serving
from infra.emulate.spheron import KEY, SpheronApi
from infra.paths import StackPaths
from infra.planning.placement import Placed, Placement
from infra.planning.planner import placed
from infra.provider.site import Site
from infra.ssh.keys import LOGIN, ensure_key, public_line
from infra.stack import CloudName, parse
from infra.watch.decide import PoolSeen, Seen, World
from infra.watch.observe import Observer
from infra.watch.silence import COMES_UP_WITHIN_S, UNWATCHED_S
from router.contract import BATCH, JobRequest, WorkerHealth
from tests.emulators.pace import Pace
from tests.emulators.paced_process import paced_worker
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


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StackPaths:
    monkeypatch.setenv("LETTERPRESS_RUN", str(tmp_path / "run"))
    paths = StackPaths.of("observed", tmp_path / "home")
    paths.create()
    return paths


def observer(paths: StackPaths, emulator: Emulator, admin_url: str, host: str = "") -> Observer:
    """Of a stack whose router's admin app is there, as watch begins with it; what the cloud says is never kept."""
    text = STACK.format(admin=admin_url.rpartition(":")[2], host=host)
    deployment = Deployment(parse(text, "stack.yaml", paths.root), paths)
    cloud = Site(paths, {"SPHERON_API_KEY": KEY, "SPHERON_API_URL": emulator.url}).cloud(CloudName.SPHERON)
    assert isinstance(cloud, SpheronCloud)
    return Observer(deployment, replace(cloud, fresh_s=0.0), placed(paths)[1], time.time())


async def placement_of(watching: Observer, *machines: str) -> Placement:
    offer = next(each for each in await watching.cloud.offers() if each.price == 0.82)
    return Placement(tuple(Placed(name, offer) for name in machines))


async def test_a_backlog_a_worker_at_work_and_one_that_does_not_come_up(paths: StackPaths) -> None:
    later = [0.0]
    account = Account(clock=time.time)
    with serving(SpheronApi(account)) as emulator:
        async with served_router() as router, paced_worker(Pace(step_s=0.2)) as worker:
            watching = observer(paths, emulator, router.admin_url)
            placement = await placement_of(watching, "batch-1", "batch-2")
            for each in placement.machines:
                account.rent(watching.identity.machine(each.machine, 1), 0.82, ())

            async def look() -> World:
                return await watching.look(placement, time.time() + later[0])

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
    paths: StackPaths,
) -> None:
    account = Account()
    with serving(SpheronApi(account)) as emulator, greeting(b"SSH-2.0-x\r\n") as port, greeting(b"") as proxy:
        async with served_router() as router, paced_worker() as worker:
            watching, now = observer(paths, emulator, router.admin_url), time.time()
            placement = await placement_of(watching, "batch-1", "batch-2")
            mine, other = (account.rent(watching.identity.machine(f"batch-{n}", 1), 0.82, ()) for n in (1, 2))
            nobody, somebody = mine.reach, Reach("127.0.0.1", port, "ubuntu")

            async def look(by: Observer = watching, at: float = now) -> tuple[Seen, Seen]:
                seen = await by.look(placement, at)
                return machine(seen, "batch-1"), machine(seen, "batch-2")

            async def unreachable() -> bool:
                async with router.admin() as admin:
                    return (await admin.worker("batch-1")).health is WorkerHealth.UNREACHABLE

            unknown = observer(paths, emulator, router.admin_url)
            unknown.silence.file = paths.root / "none.json"
            await router.use("batch-1", worker, BATCH)
            seen, _ = await look()
            assert (seen.silent_since, seen.greets) == (None, False), "nobody is asked while all is well"

            await worker.kill()
            await until(unreachable, "the router misses it")
            mine.reach = somebody
            seen, _ = await look()
            assert (seen.silent_since, seen.greets) == (None, True), "its sshd greets: that is another trouble"
            mine.reach = Reach("127.0.0.1", proxy, "ubuntu")
            assert (await look())[0].silent_since is not None, "that somebody takes the connection is not enough"
            mine.reach = nobody
            seen, second = await look()
            assert (seen.silent_since, seen.presence) == (now, Presence.THERE)
            assert not second.greets, "watch reaches nobody: then the fault may be here"
            other.reach = somebody
            seen, second = await look(at=now + UNWATCHED_S)
            assert (seen.silent_since, seen.greets) == (now, False), "since then"
            assert second.greets, "and watch does reach a machine"

            assert watching.silence.pause(300.0) <= UNWATCHED_S / 2, "however seldom it looks otherwise"

            hours = now + 7200.0
            assert (await look(at=hours))[0].silent_since == hours, "what was between, nobody saw"

            assert (await look(observer(paths, emulator, router.admin_url)))[0].silent_since == now, (
                "a watch that begins later knows what has served"
            )
            assert (await look(unknown))[0].silent_since is None, (
                "perhaps it boots still, and what the router misses was before it"
            )
            old = now + COMES_UP_WITHIN_S + 1
            assert (await look(unknown, old))[0].silent_since == old

            mine.id, account.rentals = "another", {"another": mine, other.id: other}
            assert (await look())[0].silent_since is None, "another machine of that name has not served"

            await worker.begin_again()
            await router.use("batch-1", worker, BATCH)
            assert (await look())[0].silent_since is None
            assert watching.silence.pause(300.0) == 300.0


async def test_a_router_on_a_machine_of_its_own_is_asked_through_ssh(paths: StackPaths, tmp_path: Path) -> None:
    with serving(SpheronApi()) as emulator:
        async with served_router() as router, sshd(tmp_path / "sshd") as front:
            own = ensure_key(tmp_path / "own", LOGIN)
            (front.folder / "authorized_keys").write_text(public_line(own, "operator") + "\n")
            reached = f"address: 127.0.0.1, port: {front.port}, user: {front.user}, key: {own}"
            host = f"host: {{{reached}}}, edge: {{tls: {{certificate: c.pem, key: k.pem}}}}, "
            watching = observer(paths, emulator, router.admin_url, host)
            assert pool(await watching.look(Placement(), time.time()), BATCH).queued == 0
            # It is watch that ends its connection; sshd has only to hear of it.
            eventually(lambda: front.connections() == [], 10, "a look leaves no connection behind")

            await front.stop()
            seen = await watching.look(Placement(), time.time())
            assert pool(seen, BATCH).queued is None, "that there is a way to its port without SSH is of no use"
