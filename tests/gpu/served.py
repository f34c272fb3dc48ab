"""The worker's own process over HTTP, back to back: what of the engine's speed a client still sees."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from tests.ports import free_ports
from worker.contract import EVENT, Failed, Finished, GenerationRequest, Step, Tier

REQUESTS = 20
STEPS = 25
TOKEN = "bench-" + "0" * 26
READY_WITHIN_S = 240
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is served: `requests` images of `side` x `side` in `tier` on `device`, by the weights in `folder`."""

    folder: Path
    cache: Path
    tier: Tier
    device: torch.device
    side: int = 1024
    requests: int = REQUESTS


def measure(asked: Asked, say: Callable[..., None], keep: Callable[[Row], None]) -> None:
    """Seconds an image with the next one put ahead and without; the worker is started twice, for its cold start.

    `keep` is given all that was found so far whenever something was: GPU time may end in between.
    """
    found: Row = {"tier": asked.tier, "requests": asked.requests, "steps": STEPS}
    with tempfile.TemporaryDirectory() as work:
        for start in ("first start", "second start"):
            log = Path(work) / f"{start}.log"
            with log.open("wb") as out:
                (port,) = free_ports(1)
                begun = time.monotonic()
                process = _start(asked, port, Path(work), out)
                try:
                    _wait(process, port, log)
                    found[start] = round(time.monotonic() - begun, 1)
                    keep(found)
                    if start == "first start":
                        for ahead in (True, False):
                            spent = asyncio.run(_served(port, asked, ahead=ahead)) / asked.requests
                            found["seconds an image, look-ahead " + ("on" if ahead else "off")] = spent
                            keep(found)
                            say(f"served, look-ahead {'on' if ahead else 'off'}: {spent:.3f} s an image")
                finally:
                    _end(process)
            found[f"{start}, by stage"] = _cold_start(log)
            keep(found)
            say(f"{start}: {json.dumps(found[f'{start}, by stage'])}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:  # what was measured is worth more than how it ends
        process.kill()
        process.wait()


def _cold_start(log: Path) -> Row:
    """What the worker says of its start: seconds by stage, kernels that lay there and kernels that it built."""
    for line in log.read_text().splitlines():
        if '"cold start"' in line:
            said: Row = json.loads(line)
            return {name: said[name] for name in ("seconds", "kernels_kept", "kernels_built")}
    raise RuntimeError(f"the worker said nothing of its cold start; its log ends: {log.read_text()[-2000:]}")


def _start(asked: Asked, port: int, work: Path, out: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
    token = work / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    settings = {
        "MODEL": str(asked.folder),
        "TIER": asked.tier,
        "DEVICE": str(asked.device),
        "PORT": str(port),
        "TOKEN_FILE": str(token),
        "CACHE_DIR": str(asked.cache),
        "WARM_SIZES": f"{asked.side}x{asked.side}",
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


async def _served(port: int, asked: Asked, *, ahead: bool) -> float:
    """Seconds from the first request to the last image. `ahead` puts the next one when two steps are left."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
    ) as client:
        nearly = [asyncio.Event() for _ in range(asked.requests)]
        name = f"bench{'ahead' if ahead else 'alone'}{time.time_ns()}"

        async def one(number: int) -> None:
            request = GenerationRequest(
                prompt=f"a letterpress print shop at night, number {number}",
                width=asked.side,
                height=asked.side,
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
                    if isinstance(event, Finished | Failed):
                        break
            (await client.get(f"{path}/image")).raise_for_status()  # a failed one has none
            nearly[number].set()

        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(asked.requests):
                group.create_task(one(number))
                await nearly[number].wait()
        return time.monotonic() - begun
