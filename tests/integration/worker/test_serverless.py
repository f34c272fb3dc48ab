"""The serverless worker behind the package's own local server, with the tiny model: as somebody tries it out."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.emulators.s3 import EmulatedS3, emulated_s3
from tests.ports import free_ports
from tests.waiting import eventually
from worker.settings import PREFIX

ROOT = Path(__file__).parents[3]
START_S = 120.0
LOCALLY = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port")
INLINE = 60_000
"""Bytes of base64 that these workers may answer with."""
SMALL = {"prompt": "three foxes", "width": 256, "height": 256, "steps": 2, "seed": 7}
NOISE_IS_LARGE = SMALL | {"width": 512}
Answer = dict[str, Any]


def serve(
    port: int, log: Path, tiny_cache: Path, *, module: str = "worker.serverless", **environment: str
) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "RUNPOD_", "BUCKET_"))}
    settings = {
        "CACHE_DIR": str(tiny_cache),
        "CPU_THREADS": "1",
        "DEVICE": "cpu",
        "MAX_INLINE_BYTES": str(INLINE),
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", module, *LOCALLY, str(port)],
            cwd=ROOT,
            env=kept | {PREFIX + name: value for name, value in settings.items()} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def answers(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def bucket_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path, bucket_port: int) -> Iterator[str]:
    """A worker for all tests here; its bucket is there when a test serves one."""
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("serverless") / "log"
    bucket = EmulatedS3()
    process = serve(
        port,
        log,
        tiny_cache,
        BUCKET_ENDPOINT_URL=f"http://127.0.0.1:{bucket_port}",
        BUCKET_NAME=bucket.bucket,
        BUCKET_ACCESS_KEY_ID=bucket.access_key,
        BUCKET_SECRET_ACCESS_KEY=bucket.secret_key,
        BUCKET_REGION="eu-central-1",
    )

    try:
        eventually(lambda: answers(process, port, log), START_S, "the package's server listens")
        yield f"http://127.0.0.1:{port}"
        said = log.read_text()
        assert "three foxes" not in said
        assert bucket.secret_key not in said
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=START_S, trust_env=False) as client:
        yield client


async def ask(http: httpx.AsyncClient, given: object, path: str = "/runsync") -> Answer:
    answer = await http.post(path, json={"input": given})
    assert answer.status_code == 200, answer.text
    said: Answer = answer.json()
    return said


def opened(made: Answer) -> Image.Image:
    data = base64.b64decode(made["image"])
    assert (len(data), hashlib.sha256(data).hexdigest()) == (made["bytes"], made["sha256"])
    return Image.open(io.BytesIO(data))


async def test_runsync_answers_with_the_image(http: httpx.AsyncClient) -> None:
    said = await ask(http, SMALL | {"format": "webp", "quality": 60})
    assert said["status"] == "COMPLETED", said
    image = opened(said["output"])
    assert (image.format, image.size, said["output"]["seed"]) == ("WEBP", (256, 256), 7)
    assert said["output"]["timings"]["total"] > 0


async def test_run_and_status_do_so_in_two_steps(http: httpx.AsyncClient) -> None:
    said = await ask(http, SMALL | {"format": "jpeg", "quality": 50}, "/run")
    assert said["status"] == "IN_PROGRESS"
    status = (await http.post(f"/status/{said['id']}")).json()
    assert status["status"] == "COMPLETED", status
    assert opened(status["output"]).format == "JPEG"
    assert (await http.post("/status/nobody")).json()["error"] == "Job ID not found"


async def test_a_seed_is_drawn_where_none_is_given_and_repeats_the_image(http: httpx.AsyncClient) -> None:
    free = {name: value for name, value in SMALL.items() if name != "seed"} | {"format": "webp", "quality": 50}
    first, second = [(await ask(http, free))["output"] for _ in range(2)]
    assert first["seed"] != second["seed"]
    again = (await ask(http, free | {"seed": first["seed"]}))["output"]
    assert again["image"] == first["image"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": "a fox", "width": 100}, "width: Input should be"),
        ({"prompt": " "}, "prompt: is blank"),
        ({}, "prompt"),
        ({"prompt": "a fox", "delivery": "by pigeon"}, "delivery: Input should be 'auto', 'inline' or 'url'"),
        ({"prompt": "a fox", "guidance_scale": 7}, "guidance_scale: Extra inputs are not permitted"),
        ({"prompt": "7" * 3000, "width": 256, "height": 256}, "tokens"),
    ],
)
async def test_bad_input_is_the_jobs_error_and_says_what_would_be_right(
    http: httpx.AsyncClient, given: Answer, words: str
) -> None:
    said = await ask(http, given)
    assert said["status"] == "FAILED"
    assert words in said["error"]


async def test_two_jobs_at_once_are_both_made(http: httpx.AsyncClient) -> None:
    wanted = [SMALL | {"seed": seed, "format": "webp", "quality": 50} for seed in range(5)]
    answers = await asyncio.gather(*(ask(http, given) for given in wanted))
    assert [answer["status"] for answer in answers] == ["COMPLETED"] * 5
    assert [answer["output"]["seed"] for answer in answers] == list(range(5))


async def test_a_crash_inside_a_job_is_its_error_and_the_next_one_is_made(tmp_path: Path) -> None:
    """With an engine that crashes where the prompt says so; the package's server and all between are the real ones."""
    (port,), log = free_ports(1), tmp_path / "log"
    process = serve(port, log, tmp_path, module="tests.integration.worker.scripted_serverless")
    try:
        eventually(lambda: answers(process, port, log), START_S, "the package's server listens")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=START_S, trust_env=False) as client:
            crashed = await ask(client, SMALL | {"prompt": "crash"})
            assert crashed["status"] == "FAILED"
            assert "ZeroDivisionError" in crashed["error"]
            assert "secret" not in crashed["error"]
            assert (await ask(client, SMALL))["status"] == "COMPLETED"
    finally:
        process.kill()
        process.wait()


async def test_an_image_that_is_too_large_to_carry_says_what_would_be_small_enough(http: httpx.AsyncClient) -> None:
    said = await ask(http, NOISE_IS_LARGE | {"delivery": "inline"})
    assert said["status"] == "FAILED"
    assert "MB; an answer carries 0.0 MB of image. Ask for format webp or jpeg" in said["error"]


@pytest.fixture
async def bucket(bucket_port: int) -> AsyncIterator[EmulatedS3]:
    async with emulated_s3(port=bucket_port) as service:
        yield service


async def test_a_large_image_goes_to_the_bucket_and_its_url_gives_it_to_anybody(
    http: httpx.AsyncClient, bucket: EmulatedS3
) -> None:
    said = await ask(http, NOISE_IS_LARGE)
    assert said["status"] == "COMPLETED", said
    made = said["output"]
    assert "image" not in made
    async with httpx.AsyncClient(trust_env=False) as anybody:
        answer = await anybody.get(made["image_url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert hashlib.sha256(answer.content).hexdigest() == made["sha256"]
    assert bucket.secret_key not in str(made)


async def test_a_small_image_goes_there_if_it_is_asked_for(http: httpx.AsyncClient, bucket: EmulatedS3) -> None:
    said = await ask(http, SMALL | {"format": "jpeg", "quality": 30, "delivery": "url"})
    assert said["output"]["image_url"].partition("?")[0].endswith(".jpeg")
    ((_, media_type),) = bucket.objects.values()
    assert media_type == "image/jpeg"


async def test_a_bucket_that_refuses_is_the_jobs_error_without_its_secret(
    http: httpx.AsyncClient, bucket: EmulatedS3
) -> None:
    bucket.faults.append("InvalidAccessKeyId")
    said = await ask(http, SMALL | {"delivery": "url"})
    assert said["status"] == "FAILED"
    assert "could not be uploaded to the bucket images" in said["error"]
    assert bucket.secret_key not in said["error"]


def test_half_a_bucket_ends_the_worker_with_the_names_of_the_rest(tiny_cache: Path, tmp_path: Path) -> None:
    process = serve(0, tmp_path / "log", tiny_cache, BUCKET_NAME="images")
    assert process.wait(START_S) == 78
    assert (
        "BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY: missing" in (tmp_path / "log").read_text()
    )
