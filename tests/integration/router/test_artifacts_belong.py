"""A database and its artifact store stay together, or the router does not start."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from router.artifacts import MARK
from router.artifacts.s3 import Bucket
from router.contract import JobRequest, JobState
from router.core import open_core
from router.errors import ArtifactError
from tests.emulators.paced_process import paced_worker
from tests.emulators.s3 import REGION, EmulatedS3, emulated_s3
from tests.integration.router.core_rig import brisk
from tests.integration.router.served import PUBLIC_URL, attempt_to_start, environment, served_router

ASKED = JobRequest(prompt="a press", width=256, height=256, seed=7)


def credentials(folder: Path, service: EmulatedS3) -> Path:
    file = folder / "credentials"
    file.write_text(
        f"[default]\naws_access_key_id = {service.access_key}\naws_secret_access_key = {service.secret_key}\n"
    )
    file.chmod(0o600)
    return file


async def test_a_second_router_host_with_a_folder_of_its_own_does_not_start_and_says_what_it_needs(
    tmp_path: Path,
) -> None:
    config = brisk(tmp_path)
    async with open_core(config):
        pass
    with pytest.raises(ArtifactError, match=r"More than one router host needs one .* LETTERPRESS_ROUTER_S3_BUCKET"):
        async with open_core(replace(config, artifacts_root=tmp_path / "elsewhere")):
            pass
    async with open_core(config):
        pass


async def test_a_folder_that_was_copied_to_a_bucket_is_the_databases_still(tmp_path: Path) -> None:
    async with open_core(brisk(tmp_path)):
        pass
    async with emulated_s3() as service:
        bucket = Bucket("images", "", REGION, service.endpoint, credentials=credentials(tmp_path, service))
        moved = replace(brisk(tmp_path), bucket=bucket)
        with pytest.raises(ArtifactError, match="this one has no mark"):
            async with open_core(moved):
                pass
        service.objects[MARK] = (tmp_path / "artifacts" / MARK).read_bytes(), "binary/octet-stream"
        async with open_core(moved):
            pass


async def test_images_that_are_lost_are_gone_on_without_by_writing_the_mark(tmp_path: Path) -> None:
    async with open_core(brisk(tmp_path)) as core:
        mark = await core.store.fact(MARK)
    assert mark
    shutil.rmtree(tmp_path / "artifacts")
    with pytest.raises(ArtifactError, match=f"marked {mark}; this one has no mark"):
        async with open_core(brisk(tmp_path)):
            pass
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / MARK).write_text(mark)
    async with open_core(brisk(tmp_path)):
        pass


async def test_clients_of_a_router_with_a_bucket_are_sent_there_and_find_the_image(tmp_path: Path) -> None:
    async with emulated_s3() as service, paced_worker() as worker:
        settings = {
            "S3_BUCKET": "images",
            "S3_PREFIX": "/prod/",
            "S3_REGION": REGION,
            "S3_ENDPOINT": service.endpoint,
            "S3_CREDENTIALS_FILE": str(credentials(tmp_path, service)),
        }
        async with served_router(**settings) as router:
            await router.use("w-1", worker)
            async with router.client() as client:
                job = await client.wait((await client.submit(ASKED)).id)
            assert job.state is JobState.SUCCEEDED
            assert job.image
            async with router.http() as owner, router.http("") as anybody, httpx.AsyncClient(trust_env=False) as plain:
                sent = [
                    await owner.get(f"/v1/jobs/{job.id}/image"),
                    await anybody.get(job.image.url.removeprefix(PUBLIC_URL)),
                ]
                for answer in sent:
                    assert answer.status_code == 307
                    assert "private" in answer.headers["cache-control"]
                    image = await plain.get(answer.headers["location"])
                    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
                    assert len(image.content) == job.image.bytes
                seed = await owner.post("/generate", json={"prompt": "a press", "width": 256, "height": 256})
                assert seed.status_code == 200
                assert "X-Amz-Signature" not in router.log
                assert service.secret_key not in router.log
    assert {key.split("/")[0] for key in service.objects} == {"prod"}


async def test_a_bucket_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    async with emulated_s3() as service:
        settings = {
            "S3_BUCKET": "imagse",
            "S3_ENDPOINT": service.endpoint,
            "S3_CREDENTIALS_FILE": str(credentials(tmp_path, service)),
        }
        status, said = await attempt_to_start(environment(tmp_path, **settings))
    assert status == 69
    assert "s3://imagse" in said
    assert "there is no such bucket; make it, or correct its name in the router's settings" in said
    assert "Traceback" not in said
