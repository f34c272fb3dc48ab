"""Starts `tests.emulators.paced_worker` as a process of its own, for a test to pace, freeze and kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.emulators.paced_worker import Ledger, Pace

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-tests"


@dataclass
class PacedProcess:
    """A paced worker that runs in a process of its own."""

    process: Process
    url: str
    token: str

    async def pace(self, pace: Pace) -> None:
        async with self._http() as http:
            (await http.put("/emulator", content=pace.model_dump_json())).raise_for_status()

    async def ledger(self) -> Ledger:
        async with self._http() as http:
            return Ledger.model_validate_json((await http.get("/emulator")).content)

    def _http(self) -> httpx.AsyncClient:
        socket = self.url.removeprefix("unix:") if self.url.startswith("unix:") else None
        transport = httpx.AsyncHTTPTransport(uds=socket)
        return httpx.AsyncClient(base_url="http://worker" if socket else self.url, transport=transport, trust_env=False)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """As the kernel would: no goodbye."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def paced_worker(
    pace: Pace | None = None, token: str = TOKEN, socket: Path | None = None
) -> AsyncIterator[PacedProcess]:
    """A paced worker on a free loopback port, or on a unix socket; it is gone when the block ends."""
    listen = ("--port", "0") if socket is None else ("--socket", str(socket))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.emulators.paced_worker", *listen, "--token", token),
        cwd=ROOT,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    worker = PacedProcess(process, "", token)
    try:
        if process.stdout is None:
            raise RuntimeError("the emulator's output is not piped")
        async with asyncio.timeout(30):
            worker.url = (await process.stdout.readline()).decode().strip()
        if pace is not None:
            await worker.pace(pace)
        yield worker
    finally:
        await worker.kill()
