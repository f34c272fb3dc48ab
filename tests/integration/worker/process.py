"""A worker process as its unit starts it, for a test to follow, stop and kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.ports import free_ports
from tests.waiting import eventually
from worker.contract import EVENT, Failed, Finished, GenerationRequest, WorkerState, WorkerStatus
from worker.settings import PREFIX

ROOT = Path(__file__).parents[3]
GATED = "ideogram-ai/ideogram-4-nf4-diffusers"
TOKEN = "a-token-for-these-tests"
START_S = 120.0
"""torch's import alone takes ten seconds on a free machine, and this one may be busy."""


@dataclass(frozen=True, slots=True)
class Running:
    process: subprocess.Popen[bytes]
    http: httpx.Client
    log: Path

    def status(self) -> WorkerStatus | None:
        try:
            return WorkerStatus.model_validate_json(self.http.get("/readyz").content)
        except httpx.TransportError:
            return None

    def wait_until(self, state: WorkerState) -> WorkerStatus:
        def reached() -> WorkerStatus | None:
            assert self.process.poll() is None, self.log.read_text()
            status = self.status()
            return status if status and status.state is state else None

        return eventually(reached, START_S, f"the worker says {state}")

    def end(self, within_s: float = 60) -> int:
        return self.process.wait(within_s)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts workers, `python -m worker` over the tiny repository unless told otherwise; none outlives the test."""
    running: list[Running] = []
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN)

    def start(module: str = "worker", environment: dict[str, str] | None = None, **settings: str) -> Running:
        port = settings.pop("port", str(free_ports(1)[0]))
        log = Path(settings.pop("log", str(tmp_path / f"{len(running)}.log")))
        if module == "worker" and "cache_dir" not in settings:
            settings["cache_dir"] = str(request.getfixturevalue("tiny_cache"))
        wanted = {"token_file": str(token_file), "port": port, "cpu_threads": "1", **settings}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
                    "HF_HUB_CACHE": str(tmp_path / "hub"),
                    **(environment or {}),
                    **{PREFIX + name.upper(): value for name, value in wanted.items()},
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
            trust_env=False,
        )
        running.append(Running(process, http, log))
        return running[-1]

    yield start
    for worker in running:
        worker.process.kill()
        worker.process.wait()
        worker.http.close()


def request(seed: int = 1, *, steps: int = 2) -> GenerationRequest:
    return GenerationRequest(prompt="three foxes", width=256, height=256, steps=steps, seed=seed)


@contextmanager
def following(worker: Running, generation_id: str, wanted: GenerationRequest) -> Iterator[Iterator[str]]:
    """The lines of its stream, heartbeats left out."""
    with worker.http.stream("PUT", f"/generations/{generation_id}", content=wanted.model_dump_json()) as response:
        assert response.status_code == 200, response.read()
        yield (line for line in response.iter_lines() if line)


def made(worker: Running, generation_id: str, wanted: GenerationRequest) -> Finished | Failed:
    """How it ended."""
    with following(worker, generation_id, wanted) as lines:
        end = EVENT.validate_json(list(lines)[-1])
    assert isinstance(end, Finished | Failed)
    return end
