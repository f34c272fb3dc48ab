"""`python -m worker` as its unit sees it: from its environment to its exit status."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.emulators.hub import TOKEN_ACCEPTED, TOKEN_OTHER, Repository, hub
from tests.integration.worker.process import GATED, START_S, TOKEN, Running, following, request
from worker.contract import EVENT, Finished, Step, WorkerState


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
    first = start("tests.integration.worker.misbehaving_worker")
    first.wait_until(WorkerState.READY)
    first.process.kill()
    first.end()
    second = start("tests.integration.worker.misbehaving_worker", port=str(first.http.base_url.port))
    second.wait_until(WorkerState.READY)


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
    tmp_path: Path,
    model: str,
    token: str,
    settings: dict[str, str],
    words: list[str],
) -> None:
    with hub({GATED: Repository(tiny_repository)}) as served:
        environment = {"HF_ENDPOINT": served.url, "HF_TOKEN": token}
        # A folder of its own: a yes that another test gave is written down in the shared one.
        cache = str(tmp_path / "cache")
        worker = start(model=model, device="cpu", environment=environment, cache_dir=cache, **settings)
        assert worker.end(START_S) == 78
    text = worker.log.read_text()
    said = json.loads(text.splitlines()[-1])["reason"]
    assert all(word in said for word in [*words, f"{served.url}/{model}"]), said
    assert token not in text
