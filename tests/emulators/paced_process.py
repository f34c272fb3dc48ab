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

from tests.emulators.pace import SPANS, Ledger, Pace, Span

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-tests"


@dataclass
class PacedProcess:
    """A paced worker that runs in a process of its own."""

    process: Process
    url: str
    token: str
    machine: str = ""

    async def pace(self, pace: Pace) -> None:
        async with self._http() as http:
            (await http.put("/emulator", content=pace.model_dump_json())).raise_for_status()

    async def ledger(self) -> Ledger:
        async with self._http() as http:
            return Ledger.model_validate_json((await http.get("/emulator")).content)

    async def spans(self) -> list[Span]:
        async with self._http() as http:
            return SPANS.validate_json((await http.get("/emulator/spans")).content)

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

    async def begin_again(self, machine: str | None = None) -> None:
        """At the same address, as its unit would; on another machine if one is named. Its pace is the default one."""
        await self.kill()
        where = self.url.removeprefix("unix:") if self.url.startswith("unix:") else self.url.rpartition(":")[2]
        if self.url.startswith("unix:"):
            Path(where).unlink(missing_ok=True)  # noqa: ASYNC240 - a moment
        listen = ("--socket", where) if self.url.startswith("unix:") else ("--port", where)
        self.machine = self.machine if machine is None else machine
        self.process = await _begin(listen, self.token, self.machine)
        await _address(self.process)


async def _begin(listen: tuple[str, str], token: str, machine: str) -> Process:
    said = ("--token", token, "--machine", machine)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.emulators.paced_worker", *listen, *said),
        cwd=ROOT,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def _address(process: Process) -> str:
    if process.stdout is None:
        raise RuntimeError("the emulator's output is not piped")
    async with asyncio.timeout(30):
        said = (await process.stdout.readline()).decode().strip()
    if not said:
        raise RuntimeError(f"the emulator ended with {await process.wait()} before it listened")
    return said


@asynccontextmanager
async def paced_worker(
    pace: Pace | None = None, token: str = TOKEN, socket: Path | None = None, machine: str = "machine-1"
) -> AsyncIterator[PacedProcess]:
    """A paced worker on a free loopback port, or on a unix socket; it is gone when the block ends."""
    listen = ("--port", "0") if socket is None else ("--socket", str(socket))
    worker = PacedProcess(await _begin(listen, token, machine), "", token, machine)
    try:
        worker.url = await _address(worker.process)
        if pace is not None:
            await worker.pace(pace)
        yield worker
    finally:
        await worker.kill()
