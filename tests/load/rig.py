"""What benches stand on: a fleet of paced workers, a router in front of it, and clients that cost next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import resource
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from router.contract import INTERACTIVE, WorkerHealth, WorkerRegistration
from tests.emulators.pace import SPANS, Pace, Span
from tests.emulators.paced_process import ROOT, TOKEN
from tests.integration.router.served import API_KEY, ServedRouter, served_router, until


@dataclass(frozen=True)
class Fleet:
    folder: Path
    count: int
    process: Process

    def socket(self, number: int) -> Path:
        return self.folder / f"w{number}"

    async def pace(self, pace: Pace) -> None:
        for number in range(self.count):
            async with self._http(number) as http:
                (await http.put("/emulator", content=pace.model_dump_json())).raise_for_status()

    async def spans(self) -> list[list[Span]]:
        """Of each worker, when it was at work."""
        found = []
        for number in range(self.count):
            async with self._http(number) as http:
                found.append(SPANS.validate_json((await http.get("/emulator/spans")).content))
        return found

    def _http(self, number: int) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket(number)))
        return httpx.AsyncClient(base_url="http://worker", transport=transport)


@asynccontextmanager
async def fleet(count: int, pace: Pace) -> AsyncIterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="lp-f-"))
    folder.chmod(0o755)  # noqa: ASYNC240 - nginx and HAProxy come as others
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.emulators.paced_fleet", str(count), str(folder), TOKEN),
        cwd=ROOT,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    made = Fleet(folder, count, process)
    try:
        if process.stdout is None or not (await process.stdout.readline()).strip():
            raise RuntimeError("the fleet did not begin")
        await made.pace(pace)
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        shutil.rmtree(folder)


@asynccontextmanager
async def router_before(workers: Fleet, **settings: str) -> AsyncIterator[ServedRouter]:
    """A real router process with all of the fleet, every worker believed ready."""
    bounds = {"QUEUE_BOUND": "100000", "WAIT_BOUND_S": "100000"}
    async with served_router(**{**bounds, **settings}) as router, router.admin() as admin:
        for number in range(workers.count):
            url = f"unix:{workers.socket(number)}"
            await admin.register(f"w-{number}", WorkerRegistration(url=url, token=TOKEN, pool=INTERACTIVE))

        async def all_ready() -> bool:
            return all(view.health is WorkerHealth.READY for view in await admin.workers())

        await until(all_ready, "all workers are ready")
        yield router


async def post(socket: Path | str, path: str, body: object, name: str = "") -> tuple[int, bytes]:
    """One request on a connection of its own: a client that is a few hundred bytes and no library."""
    reader, writer = await asyncio.open_unix_connection(str(socket), limit=2**22)
    try:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        status = int((await reader.readline()).split()[1])
        answer = await reader.read()
        return status, answer.partition(b"\r\n\r\n")[2]
    finally:
        writer.close()


def many_files() -> None:
    """Each waiting client is a file here, and one in the router."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    load = Path("/proc/loadavg").read_text().split()[0]
    return f"{cores} cores of {model}, Python {platform.python_version()}, load {load} at the start"
