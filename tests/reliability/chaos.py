"""Everything that can die, dies at random moments, while jobs come in; what is left is held against the promise.

Drawn from a seed, so that a run can be had again. What is promised: every job that was taken on ends exactly once,
and every image can be read and is the one that its job describes.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import socket
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import httpx
import pytest

from router.client import RouterClientError
from router.contract import JobRequest, JobState, JobView, TunnelState
from router.queue.celery import TASK, Broker, celery_app, queue_name
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.emulators.plain_png import png
from tests.integration.router.served import ServedRouter
from tests.integration.router.together import LEASE_S, ServedConsumer, Together, together
from tests.integration.router.tunnelled import Tunnels, described, serving, socket_of
from tests.postgres import Postgres, postgres
from tests.redis_server import RedisServer, redis_server
from tests.small_disk import SmallDisk, small_disk
from tests.sshd import Sshd, sshd
from worker.contract import GenerationRequest

Fault = Callable[[], Coroutine[object, object, None]]
PACE = Pace(step_s=0.03, heartbeat_s=0.3, tail_s=0.02)
STEPS = 6
WORKERS = 3
SETTLE_S = 240.0
"""In which all that was taken on must end once the faults are over; a job may have lost several leases by then."""
UNENDED = "SELECT id FROM jobs WHERE state IN ('queued', 'running')"
SHIM = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.step (by INTERVAL NOT NULL);
INSERT INTO chaos.step VALUES ('0 s');
GRANT USAGE ON SCHEMA chaos TO PUBLIC;
CREATE FUNCTION chaos.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
  AS 'SELECT pg_catalog.clock_timestamp() + by FROM chaos.step';
"""


@dataclass
class Account:
    """What a run was. `taken` are the jobs that the router has promised to finish."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    taken: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    """Synchronous requests that got their image."""
    refused: int = 0
    """Requests of either kind that were told to come back, or whose connection broke before an answer."""
    attempts: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed}: {len(self.taken)} jobs and {self.answered} requests finished, 0 lost, 0 twice; "
            f"{self.attempts} attempts, {self.refused} told to come back; "
            f"{sum(self.faults.values())} faults ({faults}) in {self.seconds:.0f} s"
        )


@dataclass
class Chaos:
    house: Together
    database: Postgres
    name: str
    broker: RedisServer
    workers: list[PacedProcess]
    tunnels: Tunnels
    machine: Sshd
    """Through which all workers are reached."""
    disk: SmallDisk | None
    draw: random.Random
    machines: int = 0
    held: defaultdict[int, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """What is being harmed already is harmed by nobody else meanwhile: a process is started again once."""

    def alone(self, with_it: object) -> asyncio.Lock:
        return self.held[id(with_it)]

    @property
    def faults(self) -> dict[str, Fault]:
        all_of_them: dict[str, Fault] = {
            "worker killed": self.kill_worker,
            "worker frozen": self.freeze_worker,
            "pool gone": self.lose_pool,
            "router killed": self.kill_router,
            "consumer killed": self.kill_consumer,
            "consumer frozen": self.freeze_consumer,
            "PostgreSQL killed": self.kill_database,
            "Redis killed": self.kill_broker,
            "Redis flushed": self.flush_broker,
            "tunnels killed": self.kill_tunnels,
            "connection cut": self.cut_connection,
            "delivered twice": self.deliver_again,
            "nginx killed": self.kill_edge,
            "clock stepped": self.step_clock,
            "disk full": self.fill_disk,
            "clients vanished": self.vanish,
            "clients slow": self.dawdle,
        }
        if self.disk is None:
            del all_of_them["disk full"]
        return all_of_them

    async def kill_worker(self) -> None:
        """And another machine takes its place, as with a spot market."""
        worker = self.draw.choice(self.workers)
        async with self.alone(worker):
            await worker.kill()
            await self.moment()
            await self.replace(worker)

    async def lose_pool(self) -> None:
        async with AsyncExitStack() as held:
            for worker in self.workers:
                await held.enter_async_context(self.alone(worker))
            await asyncio.gather(*(worker.kill() for worker in self.workers))
            await asyncio.sleep(self.draw.uniform(2, 5))
            await asyncio.gather(*(self.replace(worker) for worker in self.workers))

    async def replace(self, worker: PacedProcess) -> None:
        self.machines += 1
        await worker.begin_again(machine=f"spot-{self.machines}")
        await worker.pace(PACE)

    async def freeze_worker(self) -> None:
        """For longer than a lease runs; then it goes on as if nothing had been."""
        worker = self.draw.choice(self.workers)
        async with self.alone(worker):
            worker.freeze()
            await asyncio.sleep(LEASE_S * self.draw.uniform(1.1, 1.6))
            worker.thaw()

    async def freeze_consumer(self) -> None:
        consumer = self.draw.choice(self.house.consumers)
        async with self.alone(consumer):
            if consumer.process is None or consumer.process.returncode is not None:
                raise RuntimeError(f"the consumer does not run, and nobody has ended it:\n{consumer.log}")
            consumer.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(LEASE_S * self.draw.uniform(1.1, 1.6))
            consumer.process.send_signal(signal.SIGCONT)

    async def kill_router(self) -> None:
        router = self.draw.choice(self.house.routers)
        await router.stop(signal.SIGKILL)
        await self.moment()
        async with self.alone(self.database):  # without it, it would end, for its unit to start it again and again
            await router.start()

    async def kill_consumer(self) -> None:
        consumer = self.draw.choice(self.house.consumers)
        async with self.alone(consumer):
            await consumer.stop(signal.SIGKILL)
            await self.moment()
            async with self.alone(self.database):
                await consumer.start()

    async def kill_database(self) -> None:
        async with self.alone(self.database):
            await asyncio.to_thread(self.database.stop, signal.SIGKILL)
            await self.moment()
            await asyncio.to_thread(self.database.start)

    async def kill_broker(self) -> None:
        async with self.alone(self.broker):
            await asyncio.to_thread(self.broker.stop, signal.SIGKILL)
            await self.moment()
            await asyncio.to_thread(self.broker.start)

    async def kill_tunnels(self) -> None:
        """The service, as its unit would find it; what it had begun goes with it, or is taken over."""
        async with self.alone(self.tunnels):
            await self.tunnels.stop(signal.SIGKILL)
            await self.moment()
            await self.tunnels.start()

    async def cut_connection(self) -> None:
        """All workers' ways at once: they share the machine's one connection."""
        self.machine.cut()

    async def flush_broker(self) -> None:
        async with self.alone(self.broker):
            await asyncio.to_thread(self.broker.flush)

    async def deliver_again(self) -> None:
        """Messages that nobody sent: as many as a broker that redelivers everything would bring."""

        mark = (await self.sql("SELECT value FROM facts")).strip()[:12]

        def send() -> None:
            app = celery_app(Broker(self.broker.url, f"letterpress:{mark}:"))
            for _ in range(30):
                app.send_task(TASK, args=("interactive",), queue=queue_name("interactive"), ignore_result=True)

        async with self.alone(self.broker):
            await asyncio.to_thread(send)

    async def kill_edge(self) -> None:
        await self.house.kill_edge()
        await self.moment()
        await self.house.start_edge()

    async def step_clock(self) -> None:
        """The clock that all leases are measured by: an hour ahead, or back."""
        by = self.draw.choice(["1 hour", "-1 hour", "10 s", "-10 s"])
        await self.sql(f"UPDATE chaos.step SET by = by + '{by}'")  # noqa: S608 - one of ours

    async def fill_disk(self) -> None:
        if self.disk is None:
            raise RuntimeError("there is no small disk")
        ballast = await asyncio.to_thread(self.disk.fill)
        await asyncio.sleep(self.draw.uniform(0.5, 2))
        await asyncio.to_thread(ballast.unlink)

    async def vanish(self) -> None:
        """Clients that ask for an image and hang up."""

        async def one() -> None:
            with suppress(httpx.HTTPError):
                async with self.house.http() as http:
                    await http.post("/generate", json=body("gone"), timeout=self.draw.uniform(0.01, 0.4))

        await asyncio.gather(*(one() for _ in range(5)))

    async def dawdle(self) -> None:
        """Clients that never get to the end of their request; they must cost nobody else anything."""
        host, port = self.house.url.removeprefix("http://").split(":")
        with ExitStack() as held:
            for _ in range(20):
                with suppress(OSError):
                    sock = held.enter_context(socket.create_connection((host, int(port)), timeout=5))
                    sock.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await asyncio.sleep(2)

    async def moment(self) -> None:
        await asyncio.sleep(self.draw.uniform(0.0, 1.0))

    async def sql(self, statement: str) -> str:
        async with self.alone(self.database):
            return await asyncio.to_thread(self.database.sql, statement, self.name)


def body(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "width": 256, "height": 256, "steps": STEPS}


@asynccontextmanager
async def chaos(seed: int) -> AsyncIterator[Chaos]:
    """Two routers, two consumers, three workers behind one SSH connection, and databases that they need: all of them
    to be harmed."""
    async with AsyncExitStack() as held:
        database, broker = held.enter_context(postgres()), held.enter_context(redis_server())
        disk = None
        with suppress(pytest.skip.Exception):
            disk = held.enter_context(small_disk("16m"))
        await asyncio.to_thread(database.sql, "CREATE DATABASE chaos")
        starting = [held.enter_async_context(paced_worker(PACE)) for _ in range(WORKERS)]
        workers = await asyncio.gather(*starting)
        data = None if disk is None else disk.folder / "data"
        house = await held.enter_async_context(together(database.url("chaos"), broker.url, data=data))
        await asyncio.to_thread(database.sql, SHIM, "chaos")
        await asyncio.to_thread(database.sql, "ALTER DATABASE chaos SET search_path = chaos, pg_catalog, public")
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lp-")))
        machine = await held.enter_async_context(sshd(folder / "m"))
        tunnels = await held.enter_async_context(serving(folder, machine.client_key))
        tunnels.describe(described(machine, "m-1", **{f"w{number}": worker for number, worker in enumerate(workers)}))
        tunnel = await tunnels.becomes("m-1", TunnelState.UP)
        named = [f"w{number}" for number in range(WORKERS)]
        await asyncio.gather(*(house.use(name, f"unix:{socket_of(tunnel, name)}") for name in named))
        yield Chaos(house, database, "chaos", broker, workers, tunnels, machine, disk, random.Random(seed))


async def run(made: Chaos, seed: int, wanted: list[str], at_once: int) -> Account:
    """Let `wanted` happen, up to `at_once` at a time, under load; AssertionError unless all promises were kept."""
    account, over, begun = Account(seed), asyncio.Event(), monotonic()
    clients = [asyncio.create_task(_submit(made, account, over)), asyncio.create_task(_ask(made, account, over))]
    try:
        pending, left = set[asyncio.Task[None]](), list(wanted)
        busy: dict[asyncio.Task[None], str] = {}
        while left or pending:
            while left and len(pending) < at_once:
                name = next((one for one in left if one not in busy.values()), None)
                if name is None:
                    break
                left.remove(name)
                account.faults[name] += 1
                task = asyncio.create_task(made.faults[name]())
                busy[task] = name
                pending.add(task)
                await made.moment()
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del busy[task]
                task.result()
    finally:
        over.set()
        await asyncio.gather(*clients)
    await made.house.edge_answers()
    await _settle(made, account)
    account.seconds = monotonic() - begun
    return account


async def _submit(made: Chaos, account: Account, over: asyncio.Event) -> None:
    seed = 0
    async with made.house.client() as client:
        while not over.is_set():
            seed += 1
            request = JobRequest(prompt="a red fox", width=256, height=256, steps=STEPS, seed=seed)
            try:
                account.taken[(await client.submit(request)).id] = seed
            except RouterClientError:
                account.refused += 1
            await asyncio.sleep(made.draw.uniform(0.1, 0.4))


async def _ask(made: Chaos, account: Account, over: asyncio.Event) -> None:
    while not over.is_set():
        try:
            async with made.house.http() as http:
                answer = await http.post("/generate", json=body("a blue fox"), timeout=60)
            assert answer.status_code in (200, 503), answer.text
            account.answered += answer.status_code == 200
            account.refused += answer.status_code == 503
        except httpx.HTTPError:
            account.refused += 1
        await asyncio.sleep(0.2)


async def _settle(made: Chaos, account: Account) -> None:
    """Every job that was taken on ends, by itself, and is what it should be."""
    try:
        async with asyncio.timeout(SETTLE_S), made.house.client() as client:
            for job_id, seed in account.taken.items():
                view = await client.wait(job_id)
                assert view.state is JobState.SUCCEEDED, f"{job_id}: {view.state}: {view.error}"
                await _verify(client.image, view, seed)
            while await made.sql(UNENDED):  # noqa: ASYNC110
                await asyncio.sleep(0.2)  # those of clients that are gone
    except TimeoutError:
        raise AssertionError(await _stuck(made)) from None
    twice = await made.sql("SELECT job_id FROM attempts WHERE \"end\" = 'finished' GROUP BY job_id HAVING count(*) > 1")
    assert not twice, f"finished twice: {twice}"
    astray = await made.sql(
        "SELECT id FROM jobs WHERE (state = 'succeeded') <> EXISTS (SELECT 1 FROM attempts WHERE job_id = id "
        "AND \"end\" = 'finished')"
    )
    assert not astray, f"succeeded without a finished attempt, or the other way round: {astray}"
    account.attempts = int(await made.sql("SELECT count(*) FROM attempts"))


async def _stuck(made: Chaos) -> str:
    """What has not ended, how often it was tried, and who was there to do it."""
    left = await made.sql(f"SELECT * FROM jobs WHERE id IN ({UNENDED})")  # noqa: S608 - no word of anybody's
    tried = await made.sql(f"SELECT * FROM attempts WHERE job_id IN ({UNENDED}) ORDER BY job_id, attempt")  # noqa: S608
    there = await made.sql("SELECT * FROM workers")
    processes: list[ServedRouter | ServedConsumer] = [*made.house.routers, *made.house.consumers]
    ended = [str(each.folder) for each in processes if each.process is None or each.process.returncode is not None]
    logs = "\n".join(f"{each.folder}:\n{each.log[-2000:]}" for each in processes)
    return f"after {SETTLE_S:g} s not ended:\n{left}\nattempts:\n{tried}\nworkers:\n{there}\nended: {ended}\n{logs}"


async def _verify(image: Callable[[str], Awaitable[bytes]], view: JobView, seed: int) -> None:
    assert view.image is not None
    data = await image(view.id)
    assert hashlib.sha256(data).hexdigest() == view.image.sha256
    asked = GenerationRequest(prompt=view.prompt, width=256, height=256, steps=STEPS, seed=seed)
    assert data == png(asked), f"{view.id}: another job's image"
