"""What a worker adds to its engine, as ratios of one run: `python -m tests.load.worker_bench`.

A real worker process, whose engine only takes its time (`tests.load.paced_engine`), is asked for images back
to back over HTTP, each fetched as a router would:

    alone        the engine by itself: rendering, and nothing else
    one place    the next is sent when the last image was fetched: everything happens one after another
    report       how long telling one step keeps the engine's thread
    two places   the next is sent while the last is rendered: its text, the last file and both ways hide behind it

Images are 256x256, whose file takes a share of an image like that of 1024x1024 beside real steps.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.load.paced_engine import DECODE_S, STEP_S, TEXT_S, PacedEngine
from tests.ports import free_ports
from tests.waiting import eventually
from worker import logs
from worker.contract import EVENT, Finished, GenerationRequest
from worker.engine import Description, OnStep, Prepared, Rendered, Stop
from worker.metrics import Metrics
from worker.runner import Limits, Runner
from worker.settings import PREFIX, LogFormat, LogLevel

ROOT = Path(__file__).parents[2]
IMAGES = 20
TURNS = 3
STEPS = 25
TOKEN = "a-token-for-the-bench"
START_S = 60


def wanted(seed: int) -> GenerationRequest:
    return GenerationRequest(prompt="a fox", width=256, height=256, steps=STEPS, seed=seed)


@contextmanager
def worker() -> Iterator[str]:
    """Its address; it is gone when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        token, (port,) = Path(folder) / "token", free_ports(1)
        token.touch(mode=0o600)
        token.write_text(TOKEN)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
            f"{PREFIX}TOKEN_FILE": str(token),
            f"{PREFIX}PORT": str(port),
        }
        command = [sys.executable, "-m", "tests.load.paced_engine"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: _ready(url), START_S, "the worker is ready")
            yield url
        finally:
            process.kill()
            process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


async def one(http: httpx.AsyncClient, name: str, seed: int, half_way: asyncio.Event) -> None:
    """Make and fetch one image; `half_way` is set when half of its steps are done."""
    end = None
    async with http.stream("PUT", f"/generations/{name}", content=wanted(seed).model_dump_json()) as response:
        async for line in response.aiter_lines():
            if line:
                end = EVENT.validate_json(line)
                if getattr(end, "step", 0) == STEPS // 2:
                    half_way.set()
    assert isinstance(end, Finished), end
    image = await http.get(f"/generations/{name}/image")
    assert len(image.content) == end.bytes


async def served(url: str, places: int) -> tuple[float, float]:
    """Seconds an image, back to back, and of those the ones in which the device had nothing to do."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    running: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
        begun = time.perf_counter()
        for seed in range(IMAGES):
            half_way = asyncio.Event()
            task = asyncio.create_task(one(http, f"image.{seed}", seed, half_way))
            if places == 1:
                await task
            else:
                running.add(task)
                await half_way.wait()  # only then does the second place open
        await asyncio.gather(*running)
        took = time.perf_counter() - begun
        lines = (await http.get("/metrics")).text.splitlines()
    idle = sum(float(line.split()[1]) for line in lines if line.startswith("letterpress_worker_idle_seconds_total{"))
    return took / IMAGES, idle / IMAGES


def alone() -> float:
    """Seconds an image of the engine by itself, in this process."""
    engine = PacedEngine()
    prepared = engine.prepare(wanted(0))
    begun = time.perf_counter()
    for _ in range(IMAGES):
        engine.render(prepared, lambda _: None, lambda: False)
    return (time.perf_counter() - begun) / IMAGES


class ReportingEngine(PacedEngine):
    """Notes how long its thread is kept by telling a step."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def render(self, prepared: Prepared, on_step: OnStep, stop: Stop) -> Rendered:
        def told(step: int) -> None:
            begun = time.perf_counter()
            on_step(step)
            self.kept.append(time.perf_counter() - begun)

        return super().render(prepared, told, stop)


async def report() -> float:
    """Seconds that telling one step keeps the engine's thread, with one follower and metrics: the median."""
    engine = ReportingEngine()
    planned = Description(model="paced", engine="paced", device="none")
    runner = Runner(lambda: engine, planned, clock=time.monotonic, observer=Metrics(), limits=Limits())
    await runner.load()
    for seed in range(IMAGES // 2):
        async for _ in runner.put(f"image.{seed}", wanted(seed)).follow(START_S):
            pass
    runner.close()
    return statistics.median(engine.kept)


def main() -> None:
    seconds: dict[int, list[float]] = {1: [], 2: []}
    idle: dict[int, list[float]] = {1: [], 2: []}
    bare: list[float] = []
    # By turns, so that a machine that is busy elsewhere is so for all of them.
    for turn in range(TURNS):
        bare.append(alone())
        for places in (1, 2) if turn % 2 else (2, 1):
            with worker() as url:
                took, idled = asyncio.run(served(url, places))
            seconds[places].append(took)
            idle[places].append(idled)
    engine, off, on = (statistics.median(each) for each in (bare, seconds[1], seconds[2]))
    print(
        f"worker: images of {STEPS} steps ({STEP_S * 1000:.0f} ms a step, text {TEXT_S * 1000:.0f} ms, decoding "
        f"{DECODE_S * 1000:.0f} ms), back to back: engine alone {engine:.3f} s an image, one place {off:.3f} "
        f"({off / engine:.2f}x), two places {on:.3f} ({on / engine:.2f}x); two make {off / on:.2f}x the images of one"
    )
    logs.configure(LogLevel.ERROR, LogFormat.JSON)
    print(f"worker: telling a step keeps the engine's thread for {asyncio.run(report()) * 1e6:.0f} µs")
    without, hidden = statistics.median(idle[1]), statistics.median(idle[2])
    print(
        f"worker: between two images its device idles {without * 1000:.0f} ms with one place, {hidden * 1000:.0f} ms "
        f"with two ({without / off:.1%} and {hidden / on:.1%} of the time)"
    )


if __name__ == "__main__":
    main()
