"""A real router process for a test: `python -m router` on a socket, a port and a folder of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from router.client import AdminClient, RouterAwayError, RouterClient
from router.contract import INTERACTIVE, WorkerHealth, WorkerRegistration
from tests.emulators.paced_process import PacedProcess
from tests.ports import free_ports

ROOT = Path(__file__).parents[3]
PUBLIC_URL = "http://images.test"
API_KEY = "lp_api-key-of-a-test"
ADMIN_KEY = "lp_admin-key-of-a-test"
START_S = 120
PREFIX = "LETTERPRESS_ROUTER_"


@dataclass
class ServedRouter:
    """`environment` starts the same router again."""

    folder: Path
    environment: Mapping[str, str]
    process: Process | None = None

    @property
    def socket(self) -> str:
        return self.environment[f"{PREFIX}SOCKET"]

    def socket_exists(self) -> bool:
        return os.path.lexists(self.socket)

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.environment[f'{PREFIX}ADMIN_PORT']}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def http(self, key: str = API_KEY, timeout_s: float = 30) -> httpx.AsyncClient:
        """Speaks to the public app as the edge does."""
        return httpx.AsyncClient(
            base_url=PUBLIC_URL,
            transport=httpx.AsyncHTTPTransport(uds=self.socket),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_s,
        )

    def client(self, key: str = API_KEY) -> RouterClient:
        return RouterClient(PUBLIC_URL, key, httpx.AsyncHTTPTransport(uds=self.socket))

    def admin(self, key: str = ADMIN_KEY) -> AdminClient:
        return AdminClient(self.admin_url, key)

    async def use(self, name: str, worker: PacedProcess, pool: str = INTERACTIVE) -> None:
        """Register a worker and wait until the router believes in it."""
        async with self.admin() as admin:
            await admin.register(name, WorkerRegistration(url=worker.url, token=worker.token, pool=pool))

            async def ready() -> bool:
                return (await admin.worker(name)).health is WorkerHealth.READY

            await until(ready, f"{name} is ready")

    async def start(self) -> None:
        """Begin, and wait until it answers. RuntimeError with its log if it ends instead."""
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "router"), cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        process = self.process
        async with self.admin() as admin:

            async def answers() -> bool:
                if process.returncode is not None:
                    raise RuntimeError(f"the router ended with {process.returncode}:\n{self.log}")
                try:
                    return bool(await admin.health())
                except RouterAwayError:
                    return False

            await until(answers, "the router answers")

    async def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """The exit status, once it has ended."""
        if self.process is None:
            raise RuntimeError("the router was never started")
        if self.process.returncode is None:
            self.process.send_signal(by)
        async with asyncio.timeout(START_S):
            return await self.process.wait()


async def attempt_to_start(environment: Mapping[str, str]) -> tuple[int, str]:
    """For a router that must not start: its exit status, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router"), cwd=ROOT, env=environment, stdout=PIPE, stderr=STDOUT
    )
    try:
        async with asyncio.timeout(START_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode()


async def until(asked: Callable[[], Awaitable[bool]], what: str, within_s: float = START_S) -> None:
    """Ask until it is so; AssertionError saying `what` if it is not in time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not await asked():
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.05)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """What a router in `folder` is started with; `settings` are names without the prefix."""
    for name, secret in (("api", API_KEY), ("admin", ADMIN_KEY), ("signing", "signing-key-of-a-test")):
        (folder / name).write_text(secret)
        (folder / name).chmod(0o600)
    (port,) = free_ports(1)
    described = {
        "SOCKET": str(folder / "r.sock"),
        "ADMIN_PORT": str(port),
        "DATA_DIR": str(folder / "data"),
        "API_KEY_FILE": str(folder / "api"),
        "ADMIN_KEY_FILE": str(folder / "admin"),
        "SIGNING_KEY_FILE": str(folder / "signing"),
        "PUBLIC_URL": PUBLIC_URL,
    } | settings
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return kept | {PREFIX + name: value for name, value in described.items()}


@asynccontextmanager
async def served_router(**settings: str) -> AsyncIterator[ServedRouter]:
    """A router that answers; it is gone when the block ends, however it ended."""
    # Not pytest's tmp_path: a socket's path ends at 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="lp-"))
    router = ServedRouter(folder, environment(folder, **settings))
    try:
        await router.start()
        yield router
    finally:
        if router.process is not None:
            await router.stop(signal.SIGKILL)
        shutil.rmtree(folder)
