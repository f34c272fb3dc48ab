"""Routers and consumers that stand together: processes of their own on one PostgreSQL and one Redis, behind nginx."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from infra.edge.config import EdgeSettings
from infra.edge.nginx import configure_edge, edge_user, find_nginx
from router.client import RouterClient
from router.contract import INTERACTIVE, WorkerHealth, WorkerRegistration
from tests.emulators.paced_process import TOKEN
from tests.integration.router.served import API_KEY, PREFIX, ROOT, ServedRouter, environment, until
from tests.ports import free_ports

STOP_S = 120
LEASE_S = 3.0


@dataclass
class ServedConsumer:
    """`python -m router.consume`."""

    folder: Path
    environment: dict[str, str]
    process: Process | None = None

    @property
    def log(self) -> str:
        return (self.folder / "consumer.log").read_text()

    async def start(self) -> None:
        """Begin, and wait until Celery receives. RuntimeError with its log if it ends instead."""
        before = len(self.log) if (self.folder / "consumer.log").exists() else 0
        with (self.folder / "consumer.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "router.consume"), cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        process = self.process

        async def receives() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"the consumer ended with {process.returncode}:\n{self.log}")
            return "consumer_takes_jobs" in self.log[before:]

        await until(receives, "the consumer receives")

    async def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        if self.process is None:
            raise RuntimeError("the consumer was never started")
        if self.process.returncode is None:
            self.process.send_signal(by)
        async with asyncio.timeout(STOP_S):
            return await self.process.wait()


@dataclass
class Together:
    """All of it. `url` is the edge's."""

    url: str
    routers: list[ServedRouter]
    consumers: list[ServedConsumer]
    edge: Process | None = None
    edge_argv: Sequence[str] = ()

    def http(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {API_KEY}"},
            timeout=120,
            limits=limits,
            trust_env=False,
        )

    def client(self) -> RouterClient:
        return RouterClient(self.url, API_KEY)

    async def use(self, name: str, url: str, pool: str = INTERACTIVE) -> None:
        """Register a paced worker at one router, and wait until every router believes in it."""
        async with self.routers[0].admin() as admin:
            await admin.register(name, WorkerRegistration(url=url, token=TOKEN, pool=pool))
        for router in self.routers:
            async with router.admin() as admin:

                async def ready() -> bool:
                    views = {view.name: view for view in await admin.workers()}
                    return name in views and views[name].health is WorkerHealth.READY

                await until(ready, f"{name} is ready")

    async def start_edge(self) -> None:
        """In a process group of its own: nginx's workers outlive a killed master, and hold its port."""
        self.edge = await asyncio.create_subprocess_exec(*self.edge_argv, process_group=0)
        await self.edge_answers()

    async def kill_edge(self) -> None:
        """The master and its workers at one moment, as on a machine that dies."""
        if self.edge is None:
            raise RuntimeError("the edge was never started")
        with suppress(ProcessLookupError):
            os.killpg(self.edge.pid, signal.SIGKILL)
        await self.edge.wait()

    async def edge_answers(self) -> None:
        async with self.http() as http:

            async def answers() -> bool:
                try:
                    return (await http.get("/healthz")).status_code == 200
                except httpx.HTTPError:
                    return False

            await until(answers, "the edge answers")


@asynccontextmanager
async def together(
    database_url: str | None,
    redis_url: str | None,
    *,
    data: Path | None = None,
    routers: int = 2,
    consumers: int = 2,
) -> AsyncIterator[Together]:
    """Everything runs, and is gone when the block ends, however it ended. `data` keeps the images; without a database's
    URL, SQLite lies there, too."""
    nginx = find_nginx()
    if nginx is None:
        pytest.skip("nginx is not installed, and `letterpress setup` could not install it")
    root = _folder()
    shared = {
        **({} if database_url is None else {"DATABASE_URL": database_url}),
        **({} if redis_url is None else {"REDIS_URL": redis_url}),
        "DATA_DIR": str(data or root / "data"),
        "DRAIN_S": "60",
        "LEASE_TTL_S": str(LEASE_S),
    }
    (port,) = free_ports(1)
    house = Together(f"http://127.0.0.1:{port}", [], [])
    async with AsyncExitStack() as ending:
        ending.callback(shutil.rmtree, root)
        for number in range(routers):
            folder = _folder(root / f"r{number}")
            router = ServedRouter(folder, environment(folder, **{**shared, "SOCKET": str(root / f"r{number}.sock")}))
            ending.push_async_callback(_end, router)
            house.routers.append(router)
        for number in range(consumers):
            folder = _folder(root / f"c{number}")
            named = {f"{PREFIX}{name}": value for name, value in shared.items()}
            own = {**os.environ, **named, f"{PREFIX}CONSUMER_NAME": f"c{number}"}
            consumer = ServedConsumer(folder, own)
            ending.push_async_callback(_end, consumer)
            house.consumers.append(consumer)
        starts = [*(router.start() for router in house.routers), *(consumer.start() for consumer in house.consumers)]
        await asyncio.gather(*starts)
        sockets = tuple(root / f"r{number}.sock" for number in range(routers))
        edge = EdgeSettings(
            "127.0.0.1",
            port,
            sockets[0],
            root / "edge",
            root / "run",
            root / "logs",
            edge_user(),
            more_sockets=sockets[1:],
        )
        house.edge_argv = (await configure_edge(edge, nginx)).argv
        ending.push_async_callback(_end_edge, house)
        await house.start_edge()
        yield house


def _folder(path: Path | None = None) -> Path:
    """A new one, which nginx's user may pass through."""
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="lp-"))
    path.mkdir(exist_ok=True)
    path.chmod(0o711)
    return path


async def _end(server: ServedRouter | ServedConsumer) -> None:
    if server.process is not None:
        await server.stop(signal.SIGKILL)


async def _end_edge(house: Together) -> None:
    if house.edge is not None and house.edge.returncode is None:
        house.edge.terminate()
        await house.edge.wait()
