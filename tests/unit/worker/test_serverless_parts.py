"""What of the serverless worker needs no process: inputs, fitness, and the files that RunPod's hub reads."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter

from infra.paths import repository_root
from tests.unit.worker.scripted import ScriptedEngine, until
from worker.contract import GenerationId, ImageFormat, Tier
from worker.delivery import Bucket, Deliverer, Delivery, DeliveryError
from worker.fitness import GIB, Gpu, Needs, unfit
from worker.serverless import memory_wanted
from worker.service import Service, parsed, slug
from worker.settings import PREFIX, ServerlessSettings, SettingsError

H100 = Gpu("NVIDIA H100 80GB HBM3", driver=(13, 0), memory=79 * GIB, free=78 * GIB, capability=(9, 0))
NEEDS = Needs(cuda=(13, 0), memory=26 * GIB)


@pytest.mark.parametrize(
    ("gpu", "needs"),
    [
        (H100, NEEDS),
        (replace(H100, driver=(13, 2)), NEEDS),
        (replace(H100, driver=(14, 0)), NEEDS),
        (replace(H100, driver=(12, 2)), replace(NEEDS, cuda=(12, 8))),
        (replace(H100, capability=(8, 0)), NEEDS),
    ],
)
def test_a_gpu_that_will_do_is_taken(gpu: Gpu, needs: Needs) -> None:
    assert unfit(gpu, needs) is None


@pytest.mark.parametrize(
    ("gpu", "needs", "words"),
    [
        (H100, replace(NEEDS, cuda=None), "this build of torch has no CUDA"),
        (Gpu(), NEEDS, "no NVIDIA driver answers"),
        (replace(H100, driver=(12, 8)), NEEDS, "serves CUDA up to 12.8 and torch was built for 13.0"),
        (Gpu(driver=(13, 0)), NEEDS, "shows no GPU"),
        (replace(H100, capability=(7, 5)), NEEDS, "compute capability 7.5; the weights' bf16 wants 8.0"),
        (replace(H100, memory=24 * GIB), NEEDS, "has 24 GiB; this model wants 26 GiB"),
        (replace(H100, free=10 * GIB), NEEDS, "10 GiB free of 79 GiB"),
    ],
)
def test_a_gpu_that_will_not_do_is_refused_with_the_reason(gpu: Gpu, needs: Needs, words: str) -> None:
    assert words in (unfit(gpu, needs) or "")


def test_a_gpu_is_asked_for_what_the_tier_wants_unless_it_is_set(tmp_path: Path) -> None:
    def gib(**said: object) -> float:
        return memory_wanted(ServerlessSettings.model_validate({"cache_dir": tmp_path, **said})) / GIB

    assert gib(tier=Tier.NF4) < 23 < gib(tier=Tier.FP8) < 30 < gib(tier=Tier.EXACT) < 78
    assert gib(engine="reference") == 18
    assert gib(tier=Tier.NF4, gpu_memory_gib=40) == 40


@given(st.text(max_size=200))
def test_every_job_id_makes_a_generations_id(job_id: str) -> None:
    TypeAdapter(GenerationId).validate_python(f"{slug(job_id)}.1")


def test_an_input_is_the_contracts_request_and_a_way_of_delivery() -> None:
    request, delivery = parsed({"prompt": "a fox", "delivery": "url", "format": "webp"}, lambda: 11)
    assert (request.prompt, request.seed, request.format, delivery) == ("a fox", 11, ImageFormat.WEBP, Delivery.URL)
    assert parsed({"prompt": "a fox", "seed": 3}, lambda: 11)[0].seed == 3


@pytest.mark.parametrize("wrong", [None, [], "a fox", 7])
def test_an_input_that_is_no_object_says_what_one_looks_like(wrong: object) -> None:
    with pytest.raises(ValueError, match="describe the image"):
        parsed(wrong, lambda: 11)


@given(st.binary(max_size=3000))
def test_what_is_carried_never_has_more_bytes_than_its_carrier_takes(data: bytes) -> None:
    deliverer = Deliverer(Bucket(), max_inline=2000)
    try:
        answer = asyncio.run(deliverer.deliver("job.1", data, ImageFormat.PNG, Delivery.AUTO))
    except DeliveryError:
        answer = {}
    assert (answer == {}) == (len(data) > 1500)
    assert len(answer.get("image", "")) <= 2000


def test_a_bucket_is_whole_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Bucket.from_environment().described
    monkeypatch.setenv("BUCKET_NAME", "images")
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "a secret")
    with pytest.raises(SettingsError, match="BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID: missing") as caught:
        Bucket.from_environment()
    assert "a secret" not in str(caught.value)


def test_what_the_hubs_form_leaves_empty_is_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    form = json.loads((repository_root() / ".runpod" / "hub.json").read_text())["config"]["env"]
    for variable in form:
        if variable["key"].startswith("BUCKET_"):
            monkeypatch.setenv(variable["key"], variable["input"]["default"])
    bucket = Bucket.from_environment()
    assert not bucket.described
    Deliverer(bucket, max_inline=2000)  # opens none


@pytest.mark.parametrize("endpoint", ["s3.example.com", "https://", "ftp://s3.example.com", "http://host:port"])
def test_an_endpoint_that_is_no_address_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name in ("NAME", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"BUCKET_{name}", "something")
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", endpoint)
    with pytest.raises(SettingsError, match="BUCKET_ENDPOINT_URL: must be the storage's address"):
        Bucket.from_environment()


async def test_whatever_the_storages_library_raises_is_the_jobs_error_with_a_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PanicError(BaseException):
        """As pyo3 raises a panic of Rust's: no Exception, so nobody catches it by accident."""

    async def panics(*_: object, **__: object) -> None:
        raise PanicError

    monkeypatch.setattr("obstore.put_async", panics)
    bucket = Bucket(
        endpoint_url="http://127.0.0.1:9", name="images", access_key_id="key", secret_access_key=SecretStr("secret")
    )
    with pytest.raises(DeliveryError, match=r"PanicError\. Check the BUCKET_ variables"):
        await Deliverer(bucket, max_inline=2000).deliver("job.1", b"image", ImageFormat.PNG, Delivery.URL)


async def test_a_cancelled_job_keeps_its_place_until_the_engine_has_let_go_of_it(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    settings = ServerlessSettings(cache_dir=tmp_path, concurrency=2)
    service = Service(lambda: engine, settings, Deliverer(Bucket(), settings.max_inline_bytes))
    assert await service.loaded() is None

    def job(name: str) -> asyncio.Task[dict[str, object]]:
        given = {"prompt": name, "width": 256, "height": 256, "steps": 2, "seed": 1}
        return asyncio.create_task(service.handle({"id": name, "input": given}, lambda _: None))

    cancelled = job("first")
    await until(lambda: len(engine.asked) == 1, "the first is drawn")
    second = job("second")
    await until(lambda: len(engine.prepared) == 2, "the second is accepted")
    cancelled.cancel()
    await until(lambda: service.jobs == 1, "the first is cancelled")
    third = job("third")
    await until(lambda: service.jobs == 2, "the third has come")
    engine.step()  # the first one's: it stops after it
    engine.finish()
    engine.finish()
    assert ["error" in answer for answer in await asyncio.gather(second, third)] == [False, False]
    assert [request.prompt for request in engine.asked] == ["first", "second", "third"]


def test_runpods_hub_is_offered_settings_that_there_are_and_inputs_that_work() -> None:
    folder = repository_root() / ".runpod"
    hub = json.loads((folder / "hub.json").read_text())
    tests = json.loads((folder / "tests.json").read_text())
    offered = {variable["key"] for variable in hub["config"]["env"]}
    offered |= {name for preset in hub["config"]["presets"] for name in preset["defaults"]}
    offered |= {variable["key"] for variable in tests["config"]["env"]}
    known = {PREFIX + name.upper() for name in ServerlessSettings.model_fields}
    known |= {f"BUCKET_{name.upper()}" for name in Bucket.model_fields} | {"HF_TOKEN"}
    assert offered <= known
    for test in tests["tests"]:
        parsed(test["input"], lambda: 1)
    assert {"title", "description", "type", "category", "config"} <= hub.keys()


def test_the_image_is_built_from_what_is_named_and_nothing_else() -> None:
    ignored = (Path(repository_root()) / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[-1] == "**/.*"  # hidden files, wherever they are
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    assert kept == {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "infra", "router", "worker"}
