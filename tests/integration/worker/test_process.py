"""`python -m worker` as its unit sees it: from its environment to its exit status."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.emulators.hub import TOKEN_ACCEPTED, TOKEN_OTHER, Repository, hub
from tests.ports import free_ports
from tests.waiting import eventually
from worker.contract import EVENT, Failed, FailureType, Finished, GenerationRequest, Step, WorkerState, WorkerStatus
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


@pytest.fixture
def start(tmp_path: Path, tiny_cache: Path) -> Iterator[Callable[..., Running]]:
    """Starts workers; all of them are gone when the test ends."""
    running: list[Running] = []
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN)

    def start(module: str = "worker", environment: dict[str, str] | None = None, **settings: str) -> Running:
        port = settings.pop("port", str(free_ports(1)[0]))
        wanted = {
            "token_file": str(token_file),
            "port": port,
            "cache_dir": str(tiny_cache),
            "cpu_threads": "1",
            **settings,
        }
        log = tmp_path / f"{len(running)}.log"
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
    with worker.http.stream("PUT", f"/generations/{generation_id}", content=wanted.model_dump_json()) as response:
        assert response.status_code == 200, response.read()
        yield (line for line in response.iter_lines() if line)


def test_a_worker_answers_while_it_loads_then_makes_images_and_ends_cleanly(start: Callable[..., Running]) -> None:
    worker = start()
    loading = worker.wait_until(WorkerState.LOADING)
    assert loading.reason
    assert worker.http.get("/livez").status_code == 200
    assert worker.http.put("/generations/a.1", content=request().model_dump_json()).status_code == 503
    ready = worker.wait_until(WorkerState.READY)
    assert (ready.model, ready.engine, ready.device) == ("tiny", "fast", "cpu")

    with following(worker, "a.1", request()) as lines:
        events = [EVENT.validate_json(line) for line in lines]
    end = events[-1]
    assert isinstance(end, Finished)
    image = worker.http.get("/generations/a.1/image").content
    assert hashlib.sha256(image).hexdigest() == end.sha256
    assert Image.open(io.BytesIO(image)).size == (256, 256)

    # A busy worker told to stop finishes what it has, and waits for the image to be fetched.
    with following(worker, "b.1", request(steps=30)) as lines:
        next(line for line in lines if isinstance(EVENT.validate_json(line), Step))
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait_until(WorkerState.DRAINING).running == "b.1"
        late = worker.http.put("/generations/c.1", content=request(3).model_dump_json())
        assert (late.status_code, late.json()["type"]) == (503, "not_ready")
        last = EVENT.validate_json(list(lines)[-1])
        assert isinstance(last, Finished)
    assert len(worker.http.get("/generations/b.1/image").content) == last.bytes
    assert worker.end() == 0

    lines_said = worker.log.read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines_said), worker.log.read_text()
    assert "three foxes" not in worker.log.read_text()
    assert TOKEN not in worker.log.read_text()


def test_told_to_stop_while_it_loads_it_leaves_at_once(start: Callable[..., Running]) -> None:
    worker = start()
    worker.wait_until(WorkerState.LOADING)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_a_kill_frees_the_port_for_the_next_one(start: Callable[..., Running]) -> None:
    first = start("tests.integration.worker.breaking_worker")
    first.wait_until(WorkerState.READY)
    first.process.kill()
    first.end()
    second = start("tests.integration.worker.breaking_worker", port=str(first.http.base_url.port))
    second.wait_until(WorkerState.READY)


def test_a_broken_device_is_told_to_whoever_follows_and_ends_the_process_with_70(start: Callable[..., Running]) -> None:
    worker = start("tests.integration.worker.breaking_worker")
    worker.wait_until(WorkerState.READY)
    with following(worker, "a.1", request()) as lines:
        end = EVENT.validate_json(list(lines)[-1])
    assert isinstance(end, Failed)
    assert (end.type, end.retryable) == (FailureType.ENGINE_ERROR, True)
    assert "illegal memory access" in end.detail
    assert worker.end() == 70


def test_a_port_in_use_is_said_with_the_setting_to_change(start: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        worker = start(port=str(held.getsockname()[1]))
        assert worker.end() == 78
    assert "LETTERPRESS_WORKER_PORT: cannot listen on 127.0.0.1:" in worker.log.read_text()


def test_settings_that_make_no_worker_end_it_before_it_listens(start: Callable[..., Running]) -> None:
    worker = start(host="0.0.0.0")  # noqa: S104 - refused
    assert worker.end() == 78
    assert "loopback" in worker.log.read_text()


def test_a_missing_folder_ends_it_with_78_and_one_plain_line(start: Callable[..., Running], tmp_path: Path) -> None:
    worker = start(model=str(tmp_path / "nowhere"), device="cpu")
    assert worker.end(START_S) == 78
    said = json.loads(worker.log.read_text().splitlines()[-1])
    assert (said["event"], said["level"]) == ("broken", "error")
    assert "nowhere does not exist" in said["reason"]


@pytest.mark.parametrize("name", ["ideogram-ai/ideogram-4-nf4", "ideogram-ai/ideogram-4-nf4-diffusers"])
def test_gated_weights_are_fetched_by_their_name_after_a_yes_and_served(
    start: Callable[..., Running], tiny_repository: Path, name: str
) -> None:
    with hub({name: Repository(tiny_repository)}) as served:
        environment = {"HF_ENDPOINT": served.url, "HF_TOKEN": TOKEN_ACCEPTED}
        worker = start(model=name, device="cpu", accept_license="true", environment=environment)
        assert worker.wait_until(WorkerState.READY).model == name
        with following(worker, "a.1", request()) as lines:
            assert isinstance(EVENT.validate_json(list(lines)[-1]), Finished)
        asked = len(served.repositories[name].asked)
        # What is here is not asked for again, nor does it want the yes again.
        second = start(model=name, device="cpu", environment=environment)
        second.wait_until(WorkerState.READY)
        assert len(served.repositories[name].asked) == asked
    text = worker.log.read_text()
    assert f"downloading {name}: 0.0 of 0.0 GB" in text
    assert TOKEN_ACCEPTED not in text


@pytest.mark.parametrize(
    ("model", "token", "settings", "words"),
    [
        (GATED, TOKEN_ACCEPTED, {}, ["Ideogram Non-Commercial Model Agreement", "`accept_license: true`"]),
        (GATED, TOKEN_OTHER, {"accept_license": "true"}, ["is gated", "HF_TOKEN"]),
        ("owner/nothing", TOKEN_OTHER, {}, ["is not known to the hub", "HF_TOKEN"]),
    ],
)
def test_weights_that_may_not_be_had_are_explained_with_their_page_and_without_the_token(
    start: Callable[..., Running],
    tiny_repository: Path,
    model: str,
    token: str,
    settings: dict[str, str],
    words: list[str],
) -> None:
    with hub({GATED: Repository(tiny_repository)}) as served:
        environment = {"HF_ENDPOINT": served.url, "HF_TOKEN": token}
        worker = start(model=model, device="cpu", environment=environment, **settings)
        assert worker.end(START_S) == 78
    text = worker.log.read_text()
    said = json.loads(text.splitlines()[-1])["reason"]
    assert all(word in said for word in [*words, f"{served.url}/{model}"]), said
    assert token not in text
