"""The worker's own process over HTTP, back to back: what of the engine's speed a client still sees."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_ports
from worker.contract import EVENT, Finished, GenerationRequest, Step, Tier

REQUESTS = 20
STEPS = 25
TOKEN = "bench-" + "0" * 26
READY_WITHIN_S = 240
Row = dict[str, Any]


def measure(folder: Path, cache: Path, tier: Tier, say: Callable[..., None], requests: int = REQUESTS) -> Row:
    """Seconds an image with the next one put ahead and without; the worker is started twice, for its cold start."""
    found: Row = {"tier": tier, "requests": requests, "steps": STEPS}
    with tempfile.TemporaryDirectory() as work:
        for start in ("first start", "second start"):
            log = Path(work) / f"{start}.log"
            with log.open("wb") as out:
                (port,) = free_ports(1)
                begun = time.monotonic()
                process = _start(folder, cache, tier, port, Path(work), out)
                try:
                    _wait(process, port, log)
                    found[start] = round(time.monotonic() - begun, 1)
                    if start == "first start":
                        for ahead in (True, False):
                            spent = asyncio.run(_served(port, requests, ahead=ahead))
                            found["seconds an image, look-ahead " + ("on" if ahead else "off")] = spent / requests
                            say(f"served, look-ahead {'on' if ahead else 'off'}: {spent / requests:.3f} s an image")
                finally:
                    process.terminate()
                    process.wait(60)
            cold = [line for line in log.read_text().splitlines() if '"cold start"' in line]
            found[f"{start}, by stage"] = cold[-1] if cold else None
    return found


def _start(folder: Path, cache: Path, tier: Tier, port: int, work: Path, out: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
    token = work / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    settings = {
        "MODEL": str(folder),
        "TIER": tier,
        "DEVICE": "cuda:0",
        "PORT": str(port),
        "TOKEN_FILE": str(token),
        "CACHE_DIR": str(cache),
    }
    environment = os.environ | {f"LETTERPRESS_WORKER_{name}": value for name, value in settings.items()}
    return subprocess.Popen([sys.executable, "-m", "worker"], env=environment, stdout=out, stderr=out)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the worker did not become ready; its log ends: {log.read_text()[-2000:]}")


async def _served(port: int, requests: int, *, ahead: bool) -> float:
    """Seconds from the first request to the last image. `ahead` puts the next one when two steps are left."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
    ) as client:
        nearly = [asyncio.Event() for _ in range(requests)]
        name = f"bench{'ahead' if ahead else 'alone'}{time.time_ns()}"

        async def one(number: int) -> None:
            request = GenerationRequest(
                prompt=f"a letterpress print shop at night, number {number}",
                width=1024,
                height=1024,
                steps=STEPS,
                seed=number,
            )
            path = f"/generations/{name}-{number}.1"
            async with client.stream("PUT", path, content=request.model_dump_json()) as stream:
                stream.raise_for_status()
                async for line in stream.aiter_lines():
                    event = EVENT.validate_json(line) if line else None
                    if ahead and isinstance(event, Step) and event.step >= STEPS - 2:
                        nearly[number].set()
                    if isinstance(event, Finished):
                        break
            (await client.get(f"{path}/image")).raise_for_status()
            nearly[number].set()

        begun = time.monotonic()
        tasks = []
        for number in range(requests):
            tasks.append(asyncio.create_task(one(number)))
            await nearly[number].wait()
        await asyncio.gather(*tasks)
        return time.monotonic() - begun
