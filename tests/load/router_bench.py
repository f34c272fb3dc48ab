"""What a router costs and gains, as figures and ratios of one run: `python -m tests.load.router_bench [PART …]`.

idle         64 workers, 2 s an image of 500 kB, always something waiting: the mean share of time that a
             worker has nothing to do, with the next job given ahead of the end, and without
overhead     a request to a router, beside the same generation asked of the worker itself
wait         load 0.8, 70 % of 2 s and 30 % of 16 s (five times faster): how long a request waits for its
             worker, in front of the same eight: nginx taking turns, HAProxy with `maxconn 1`, the router
connections  two thousand that wait: answered, and what one costs in memory
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import httpx
import uvloop

from infra.edge.nginx import find_nginx
from infra.setup.for_tests import find_haproxy
from tests.emulators.pace import Pace, Span
from tests.emulators.paced_process import TOKEN
from tests.load.rig import Fleet, fleet, machine, many_files, post, quantile, router_before
from worker.contract import WorkerState

IMAGE_BYTES = 500_000
SEEDS = 5


def body(steps: int, prompt: str = "a red fox") -> dict[str, object]:
    return {"prompt": prompt, "width": 256, "height": 256, "steps": steps}


# --- idle -------------------------------------------------------------------------------------------------------

WORKERS = 64
STEPS, STEP_S, TAIL_S = 9, 0.2, 0.2
WARM_S, WINDOW_S = 6.0, 24.0


async def idle() -> None:
    pace = Pace(step_s=STEP_S, tail_s=TAIL_S, padding=IMAGE_BYTES, heartbeat_s=5)
    shares = {}
    for ahead_s in ("0.3", "0"):
        async with fleet(WORKERS, pace) as workers, router_before(workers, LOOK_AHEAD_S=ahead_s) as router:
            await _loading(workers)
            for _ in range(int((WARM_S + WINDOW_S + 8) / 2)):
                await asyncio.gather(*(post(router.socket, "/v1/jobs", body(STEPS)) for _ in range(WORKERS)))
            await workers.pace(pace)
            begun = monotonic() + WARM_S
            await asyncio.sleep(WARM_S + WINDOW_S)
            busy = [_busy(spans, begun, begun + WINDOW_S) for spans in await workers.spans()]
            shares[ahead_s] = 1 - statistics.fmean(busy)
    on, off = shares["0.3"], shares["0"]
    said = f"mean idle share of {WORKERS} saturated workers, look-ahead 0.3 s: {on:.2%}; off: {off:.2%}"
    print(f"idle         {said}; ratio {off / max(on, 1e-6):.1f}")


def _busy(spans: list[Span], begin: float, end: float) -> float:
    """The share of the window in which one of the spans runs. (One that still runs is told by nobody.)"""
    last = max((span.ended for span in spans), default=end)
    until = min(end, last)
    inside = sum(max(0.0, min(span.ended, until) - max(span.begun, begin)) for span in spans)
    return inside / max(until - begin, 1e-6)


# --- overhead ---------------------------------------------------------------------------------------------------


COMMIT_BYTES = 20_000
"""What a job's creation, or its end, adds to SQLite's log: some pages."""


async def overhead() -> None:
    for size in (0, IMAGE_BYTES):
        pace = Pace(step_s=0.005, padding=size)
        async with fleet(1, pace) as workers, router_before(workers) as router:
            direct, through, synced = [], [], []
            transport = httpx.AsyncHTTPTransport(uds=str(workers.socket(0)))
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with httpx.AsyncClient(base_url="http://w", transport=transport, headers=headers) as worker:
                for number in range(150):
                    begun = monotonic()
                    asked = json.dumps({**body(4), "seed": number})
                    async with worker.stream("PUT", f"/generations/direct{number}.1", content=asked) as events:
                        async for _ in events.aiter_lines():
                            pass
                    (await worker.get(f"/generations/direct{number}.1/image")).raise_for_status()
                    direct.append(monotonic() - begun)
                    begun = monotonic()
                    status, answer = await post(router.socket, "/generate", body(4))
                    through.append(monotonic() - begun)
                    if status != 200 or not base64.b64decode(json.loads(answer)["image"]):
                        raise RuntimeError(f"{status}: {answer[:200]!r}")
                    synced.append(_synced(workers.folder, max(size, 1323)))
        above = statistics.median(through) - statistics.median(direct)
        at_it, via_us = 1000 * statistics.median(direct), 1000 * statistics.median(through)
        said = f"p50 {via_us:.1f} ms through the router, {at_it:.1f} ms at the worker: {1000 * above:.1f} ms above"
        disk = f"the disk alone takes {1000 * statistics.median(synced):.1f} ms for what is synced"
        print(f"overhead     image of {max(size, 1323) // 1000} kB: {said}; {disk}")


def _synced(folder: Path, size: int) -> float:
    """Seconds of what is on the disk before a request is answered, without a router: two commits to a log, and an
    image as a new file of its folder."""
    image, data = folder / "image", os.urandom(size)
    with (folder / "log").open("ab", buffering=0) as log:
        begun = monotonic()
        for _ in range(2):
            log.write(data[:COMMIT_BYTES].ljust(COMMIT_BYTES))
            os.fdatasync(log.fileno())
        with (folder / ".image").open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        (folder / ".image").replace(image)
        above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(above)
        spent = monotonic() - begun
        os.close(above)
    image.unlink()
    return spent


# --- wait -------------------------------------------------------------------------------------------------------

FASTER = 5
SERVERS, LOAD, ARRIVALS = 8, 0.8, 400
SHORT, LONG = 4, 32
UNIT_S = 2 / SHORT / FASTER
MEAN_S = (0.7 * SHORT + 0.3 * LONG) * UNIT_S

Send = Callable[[int, str], Awaitable[None]]


@asynccontextmanager
async def _nginx(workers: Fleet, folder: Path) -> AsyncIterator[Send]:
    servers = "".join(f"server unix:{workers.socket(n)};" for n in range(workers.count))
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error; worker_processes 1; user root;\n"
        f"events {{ worker_connections 4096; }} http {{ access_log off; client_body_temp_path {folder}/b;"
        f"proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; "
        f"uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;"
        f"upstream w {{ {servers} }} server {{ listen unix:{folder}/front; location / {{ proxy_pass http://w;"
        "proxy_read_timeout 600s; } } }\n"
    )
    nginx = find_nginx()
    process = await asyncio.create_subprocess_exec(str(nginx), "-c", str(conf))
    async with _running(process, folder / "front"):
        yield _baseline(folder / "front")


@asynccontextmanager
async def _haproxy(workers: Fleet, folder: Path) -> AsyncIterator[Send]:
    servers = "\n".join(f"  server w{n} unix@{workers.socket(n)} maxconn 1" for n in range(workers.count))
    conf = folder / "haproxy.cfg"
    conf.write_text(
        "global\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n"
        f"  timeout server 600s\n  timeout queue 600s\nfrontend f\n  bind unix@{folder}/front\n  default_backend b\n"
        f"backend b\n  balance leastconn\n  http-reuse never\n{servers}\n"
    )
    process = await asyncio.create_subprocess_exec(str(find_haproxy()), "-q", "-f", str(conf))
    async with _running(process, folder / "front"):
        yield _baseline(folder / "front")


def _baseline(front: Path) -> Send:
    async def send(steps: int, name: str) -> None:
        status, _ = await post(front, f"/make/{name}", {**body(steps), "seed": 1})
        if status != 200:
            raise RuntimeError(f"the front answered {status}")

    return send


@asynccontextmanager
async def _running(process: Process, front: Path) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(30):
            while not front.exists():  # noqa: ASYNC110, ASYNC240 - a file
                await asyncio.sleep(0.05)
        yield
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _router(workers: Fleet, _folder: Path) -> AsyncIterator[Send]:
    async with router_before(workers, LOOK_AHEAD_S=str(0.3 / FASTER)) as router:

        async def send(steps: int, name: str) -> None:
            status, answer = await post(router.socket, "/generate", body(steps, name))
            if status != 200:
                raise RuntimeError(f"the router answered {status}: {answer[:200]!r}")

        yield send


POLICIES = {"nginx": _nginx, "HAProxy": _haproxy, "router": _router}


async def _waits(seed: int, send: Send) -> list[float]:
    """By how much longer than its own service each request took, at full scale."""
    draw, waits = random.Random(seed), list[float]()

    async def one(steps: int, name: str) -> None:
        begun = monotonic()
        await send(steps, name)
        waits.append((monotonic() - begun - steps * UNIT_S) * FASTER)

    async with asyncio.TaskGroup() as group:
        for number in range(ARRIVALS):
            await asyncio.sleep(draw.expovariate(LOAD * SERVERS / MEAN_S))
            group.create_task(one(SHORT if draw.random() < 0.7 else LONG, f"s{seed}n{number}"))
    return waits


async def wait() -> None:
    """All three at the same time, each with workers of its own, so that a busy machine is as busy for all."""

    async def of(policy: str) -> list[list[float]]:
        with tempfile.TemporaryDirectory(prefix="lp-w-") as folder:
            Path(folder).chmod(0o755)  # noqa: ASYNC240 - nginx and HAProxy may go on as others
            async with fleet(SERVERS, Pace(step_s=UNIT_S)) as workers, POLICIES[policy](workers, Path(folder)) as send:
                ready.add(policy)
                async with asyncio.timeout(120):
                    while len(ready) < len(POLICIES):  # noqa: ASYNC110 - of three that stand beside one another
                        await asyncio.sleep(0.05)
                return [await _waits(seed, send) for seed in range(SEEDS)]

    ready = set[str]()
    found = dict(zip(POLICIES, await asyncio.gather(*(of(policy) for policy in POLICIES)), strict=True))
    p95 = {policy: [quantile(waits, 0.95) for waits in runs] for policy, runs in found.items()}
    for policy, values in p95.items():
        seeds = ", ".join(f"{value:.1f}" for value in values)
        print(f"wait         {policy:8} p95 {statistics.fmean(values):5.1f} s (seeds: {seeds})")
    ours = statistics.fmean(p95["router"])
    print(f"wait         nginx / router {statistics.fmean(p95['nginx']) / ours:.2f}; ", end="")
    print(f"router / HAProxy {ours / statistics.fmean(p95['HAProxy']):.3f}")


# --- connections ------------------------------------------------------------------------------------------------

CONNECTIONS = 2000


async def connections() -> None:
    many_files()
    loading = Pace(state=WorkerState.LOADING)
    async with fleet(16, loading) as workers, router_before_loading(workers) as (pid, socket):
        before = _resident(pid)
        begun = monotonic()
        waiting = [asyncio.create_task(post(socket, "/generate", body(1, f"{n}"))) for n in range(CONNECTIONS)]
        while _open_files(pid) < CONNECTIONS:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.2)
        await asyncio.sleep(3)
        each = (_resident(pid) - before) / CONNECTIONS
        await workers.pace(Pace(step_s=0.01))
        answers = await asyncio.gather(*waiting)
        took = monotonic() - begun
    good = sum(status == 200 for status, _ in answers)
    print(f"connections  {good} of {CONNECTIONS} that waited were answered, {took:.0f} s in all; ", end="")
    print(f"{each / 1000:.0f} kB each while they waited")


async def _loading(workers: Fleet) -> None:
    """From now on nobody is ready, so that everything waits."""
    await workers.pace(Pace(state=WorkerState.LOADING))
    await asyncio.sleep(5)  # until the router has looked at them all


@asynccontextmanager
async def router_before_loading(workers: Fleet) -> AsyncIterator[tuple[int, str]]:
    await workers.pace(Pace())
    async with router_before(workers) as router:
        await _loading(workers)
        if router.process is None:
            raise RuntimeError("the router is not there")
        yield router.process.pid, router.socket


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


PARTS = {"idle": idle, "overhead": overhead, "wait": wait, "connections": connections}


async def main(parts: list[str]) -> None:
    print(f"router_bench at {_commit()} on {machine()}")
    for part in parts or list(PARTS):
        await PARTS[part]()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1:]))
