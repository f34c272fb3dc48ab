"""What can die wherever routers stand, and dies at random moments: workers, their whole pool, routers, the edge,
tunnels, clients. `tests.reliability.scaled` and `tests.reliability.alone` have the houses, and what else dies there.

Drawn from a seed, so that a run can be had again.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import tempfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from router.contract import BATCH, INTERACTIVE, TunnelState
from tests.emulators.pace import Pace
from tests.emulators.paced_process import PacedProcess, paced_worker
from tests.integration.router.served import ServedRouter
from tests.integration.router.together import LEASE_S, ServedConsumer, Together
from tests.integration.router.tunnelled import Tunnels, described, serving, socket_of
from tests.small_disk import SmallDisk
from tests.sshd import Sshd, sshd

Fault = Callable[[], Coroutine[object, object, None]]
PACE = Pace(step_s=0.03, heartbeat_s=0.3, tail_s=0.02)
STEPS = 6
WORKERS, BATCH_WORKERS = 3, 2


@dataclass
class Chaos(ABC):
    house: Together
    fleet: Fleet
    disk: SmallDisk | None
    draw: random.Random
    away_s: float
    """How long the whole batch pool is gone."""
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
            "interactive pool gone": self.lose_pool,
            "batch pool gone": self.lose_batch_pool,
            "router killed": self.kill_router,
            "router frozen": self.freeze_router,
            "tunnels killed": self.kill_tunnels,
            "connection cut": self.cut_connection,
            "nginx killed": self.kill_edge,
            "clients vanished": self.vanish,
            "clients slow": self.dawdle,
        }
        if self.disk is not None:
            all_of_them["disk full"] = self.fill_disk
        return all_of_them

    @property
    @abstractmethod
    def store(self) -> object:
        """Without it, a router that starts would end, for its unit to start it again and again."""

    @abstractmethod
    async def sql(self, statement: str) -> str:
        """A line a row, its fields parted by a bar; nothing at all if there is none."""

    @abstractmethod
    def full_s(self) -> float:
        """How long a full disk stays so."""

    async def fill_disk(self) -> None:
        if self.disk is None:
            raise RuntimeError("there is no small disk")
        async with self.alone(self.disk):
            ballast = await asyncio.to_thread(self.disk.fill)
            await asyncio.sleep(self.full_s())
            await asyncio.to_thread(ballast.unlink)

    async def kill_worker(self) -> None:
        """And another machine takes its place, as with a spot market."""
        worker = self.draw.choice(self.fleet.workers)
        async with self.alone(worker):
            await worker.kill()
            await self.moment()
            await self.replace(worker)

    async def lose_pool(self) -> None:
        await self._lose(self.fleet.interactive, self.draw.uniform(2, 5))

    async def lose_batch_pool(self) -> None:
        """As when a spot market has no machine left."""
        await self._lose(self.fleet.batch, self.away_s)

    async def _lose(self, workers: Sequence[PacedProcess], away_s: float) -> None:
        async with AsyncExitStack() as held:
            for worker in workers:
                await held.enter_async_context(self.alone(worker))
            await asyncio.gather(*(worker.kill() for worker in workers))
            await asyncio.sleep(away_s)
            await asyncio.gather(*(self.replace(worker) for worker in workers))

    async def replace(self, worker: PacedProcess) -> None:
        self.machines += 1
        await worker.begin_again(machine=f"spot-{self.machines}")
        await worker.pace(PACE)

    async def freeze_worker(self) -> None:
        """For longer than a lease runs; then it goes on as if nothing had been."""
        worker = self.draw.choice(self.fleet.workers)
        async with self.alone(worker):
            worker.freeze()
            await asyncio.sleep(self.past_a_lease())
            worker.thaw()

    async def kill_router(self) -> None:
        router = self.draw.choice(self.house.routers)
        async with self.alone(router):
            await router.stop(signal.SIGKILL)
            await self.moment()
            async with self.alone(self.store):
                await router.start()

    async def freeze_router(self) -> None:
        await self.freeze(self.draw.choice(self.house.routers))

    async def freeze(self, process: ServedRouter | ServedConsumer) -> None:
        async with self.alone(process):
            if process.process is None or process.process.returncode is not None:
                raise RuntimeError(f"it does not run, and nobody has ended it:\n{process.log}")
            process.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self.past_a_lease())
            process.process.send_signal(signal.SIGCONT)

    async def kill_tunnels(self) -> None:
        """The service, as its unit would find it; what it had begun goes with it, or is taken over."""
        async with self.alone(self.fleet.tunnels):
            await self.fleet.tunnels.stop(signal.SIGKILL)
            await self.moment()
            await self.fleet.tunnels.start()

    async def cut_connection(self) -> None:
        """All workers' ways at once: they share the machine's one connection."""
        self.fleet.machine.cut()

    async def kill_edge(self) -> None:
        await self.house.kill_edge()
        await self.moment()
        await self.house.start_edge()

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

    def past_a_lease(self) -> float:
        return LEASE_S * self.draw.uniform(1.1, 1.6)

    def logs(self) -> Iterator[str]:
        """The ends of what the processes have said, and whether they run."""
        processes: list[ServedRouter | ServedConsumer] = [*self.house.routers, *self.house.consumers]
        for each in processes:
            ended = each.process is None or each.process.returncode is not None
            yield f"{each.folder}{' (ended)' if ended else ''}:\n{each.log[-2000:]}"


@dataclass(frozen=True)
class Fleet:
    """Workers of two pools, each reached through one tunnel to one machine."""

    interactive: Sequence[PacedProcess]
    batch: Sequence[PacedProcess]
    tunnels: Tunnels
    machine: Sshd

    @property
    def workers(self) -> Sequence[PacedProcess]:
        return [*self.interactive, *self.batch]


@asynccontextmanager
async def fleet_of(house: Together) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as held:
        count = WORKERS + BATCH_WORKERS
        workers = await asyncio.gather(*(held.enter_async_context(paced_worker(PACE)) for _ in range(count)))
        named = {f"w{number}": worker for number, worker in enumerate(workers)}
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lp-")))
        machine = await held.enter_async_context(sshd(folder / "m"))
        tunnels = await held.enter_async_context(serving(folder, machine.client_key))
        tunnels.describe(described(machine, "m-1", **named))
        tunnel = await tunnels.becomes("m-1", TunnelState.UP)
        pools = [INTERACTIVE] * WORKERS + [BATCH] * BATCH_WORKERS
        uses = zip(named, pools, strict=True)
        await asyncio.gather(*(house.use(name, f"unix:{socket_of(tunnel, name)}", pool) for name, pool in uses))
        yield Fleet(workers[:WORKERS], workers[WORKERS:], tunnels, machine)


def body(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "width": 256, "height": 256, "steps": STEPS}
