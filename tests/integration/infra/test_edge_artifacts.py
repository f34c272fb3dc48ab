"""Images on their way out: a real router names the file, real nginx sends it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from infra.edge.config import ArtifactsFolder, EdgeError, EdgeSettings
from infra.edge.nginx import configure_edge, edge_user, find_nginx, may_send_from
from infra.hosts import Unit
from infra.hosts.local import LocalHost
from router.contract import EDGE_ARTIFACTS, JobRequest, JobView
from tests.emulators.paced_process import paced_worker
from tests.emulators.plain_png import png
from tests.integration.infra.sleepers import until
from tests.integration.infra.test_nginx_edge import dialect_of, listening, silent
from tests.integration.router.served import API_KEY, ServedRouter, served_router
from tests.ports import free_ports
from worker.contract import GenerationRequest

nginx = find_nginx()
# ruff: noqa: ASYNC240 - nobody else waits for this loop
pytestmark = [
    pytest.mark.skipif(nginx is None, reason="nginx is not installed (make deploy installs it)"),
    pytest.mark.asyncio(loop_scope="module"),
]
ASKED = JobRequest(prompt="a press", width=256, height=256, seed=7)


@dataclass
class Front:
    """A router with one image, behind an edge."""

    router: ServedRouter
    client: httpx.AsyncClient
    job: JobView
    image: bytes

    @property
    def link(self) -> str:
        assert self.job.image
        return self.job.image.url.removeprefix(str(self.client.base_url).rstrip("/"))

    @property
    def files(self) -> list[Path]:
        return list((self.router.folder / "data" / "artifacts").rglob("*.png"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    (port,) = free_ports(1)
    folder, base = tmp_path_factory.mktemp("edge"), f"http://127.0.0.1:{port}"
    host = LocalHost("here", folder / "host", folder / "logs", first_moment=0.05)
    sent = {"EDGE_SENDS_ARTIFACTS": "true", "PUBLIC_URL": base}
    async with paced_worker() as worker, served_router(**sent) as router:
        artifacts = ArtifactsFolder(router.folder / "data" / "artifacts", router.folder)
        run = router.folder / "run"
        settings = EdgeSettings("127.0.0.1", port, Path(router.socket), folder / "edge", run, folder / "logs")
        await host.ensure(await edge(replace(settings, artifacts=artifacts, user=edge_user())), silent)
        await until(lambda: listening(port))
        await router.use("w-1", worker)
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False, timeout=20) as client:
            async with router.client() as jobs:
                job = await jobs.wait((await jobs.submit(ASKED)).id)
            request = GenerationRequest(prompt="a press", width=256, height=256, seed=7)
            yield Front(router, client, job, png(request))
        await host.remove("edge", silent)


async def edge(settings: EdgeSettings) -> Unit:
    assert nginx
    return await configure_edge(settings, nginx)


@pytest.fixture(params=["by signature", "by key"])
def path(request: pytest.FixtureRequest, front: Front) -> str:
    return front.link if request.param == "by signature" else f"/v1/jobs/{front.job.id}/image"


async def test_the_image_is_sent_whole_with_its_type_its_digest_and_no_trace_of_where_it_lies(
    front: Front, path: str
) -> None:
    answer = await front.client.get(path)
    assert (answer.status_code, answer.content) == (200, front.image)
    assert front.job.image
    assert answer.headers["etag"] == f'"{front.job.image.sha256}"'
    assert answer.headers["content-type"] == "image/png"
    assert "private" in answer.headers["cache-control"]
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-request-id"]
    assert "x-accel-redirect" not in answer.headers


async def test_the_router_itself_sends_no_byte_of_it(front: Front, path: str) -> None:
    async with front.router.http() as straight:
        answer = await straight.get(path)
    assert answer.content == b""
    assert answer.headers["x-accel-redirect"].startswith(EDGE_ARTIFACTS)


async def test_a_range_is_a_part(front: Front, path: str) -> None:
    answer = await front.client.get(path, headers={"Range": "bytes=4-9"})
    assert (answer.status_code, answer.content) == (206, front.image[4:10])
    assert answer.headers["content-range"] == f"bytes 4-9/{len(front.image)}"


async def test_a_range_of_another_image_is_the_whole_of_this_one(front: Front, path: str) -> None:
    etag = (await front.client.head(path)).headers["etag"]
    for condition, status in ((etag, 206), ('"another"', 200)):
        answer = await front.client.get(path, headers={"Range": "bytes=4-9", "If-Range": condition})
        assert answer.status_code == status


async def test_a_range_beyond_the_end_is_refused_in_a_dialect(front: Front, path: str) -> None:
    answer = await front.client.get(path, headers={"Range": f"bytes={len(front.image)}-"})
    assert (answer.status_code, dialect_of(answer)) == (416, "problem")


async def test_head_says_how_long_it_is(front: Front, path: str) -> None:
    answer = await front.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(front.image)


async def test_whoever_has_it_is_told_so(front: Front, path: str) -> None:
    etag = (await front.client.head(path)).headers["etag"]
    answer = await front.client.get(path, headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)


async def test_a_wrong_signature_opens_nothing(front: Front) -> None:
    answer = await front.client.get(front.link[:-1] + ("0" if front.link[-1] != "0" else "1"))
    assert (answer.status_code, dialect_of(answer)) == (403, "problem")


@pytest.mark.parametrize(
    "way",
    [
        "{internal}{file}",
        "/v1/..{internal}{file}",
        "/%2eartifacts/{file}",
        "{internal}../router.db",
        "{internal}..%2frouter.db",
        "/v1/jobs/..%2f..%2f.artifacts%2f{file}/image",
        "/artifacts/..%2f.artifacts%2f{file}",
    ],
)
async def test_no_way_but_the_routers_leads_to_a_file(front: Front, way: str) -> None:
    file = front.files[0].relative_to(front.router.folder / "data" / "artifacts")
    target = way.format(internal=EDGE_ARTIFACTS, file=file)
    url = httpx.URL(str(front.client.base_url)).copy_with(raw_path=target.encode())
    answer = await front.client.get(url)
    assert answer.status_code in (400, 404, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert front.image not in answer.content


async def test_a_client_cannot_name_the_file_itself(front: Front) -> None:
    file = front.files[0].relative_to(front.router.folder / "data" / "artifacts")
    answer = await front.client.get("/v1/jobs/none/image", headers={"X-Accel-Redirect": f"{EDGE_ARTIFACTS}{file}"})
    assert answer.status_code == 404


async def test_an_image_that_was_removed_by_hand_is_an_error_of_ours(front: Front) -> None:
    (file,) = front.files
    away = file.with_name("away")
    file.rename(away)
    try:
        answer = await front.client.get(front.link)
    finally:
        away.rename(file)
    assert (answer.status_code, dialect_of(answer)) == (500, "problem")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's edge runs as another user")
async def test_nobody_else_gets_at_the_images(front: Front) -> None:
    (file,) = front.files
    drop = [shutil.which("setpriv") or "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    assert (await (await asyncio.create_subprocess_exec(*drop, "test", "-r", str(file))).wait()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's edge runs as another user")
async def test_images_from_before_are_opened_to_the_edge_and_nothing_else_is(tmp_path: Path) -> None:
    user = edge_user()
    assert user
    tmp_path.chmod(0o700)
    stack = tmp_path / "stack"
    artifacts = ArtifactsFolder(stack / "data" / "artifacts", stack)
    (artifacts.path / "aa").mkdir(parents=True)
    (artifacts.path / "aa" / "old.png").touch(0o600)
    (stack / "data" / "router.db").touch(0o600)
    settings = EdgeSettings("127.0.0.1", 1, stack / "r", stack / "edge", Path("/run/lp-test"), stack / "logs")
    try:
        await edge(replace(settings, artifacts=artifacts, user=user))
    finally:
        shutil.rmtree("/run/lp-test", ignore_errors=True)
    seen = {path: path.stat() for path in (stack, artifacts.path, artifacts.path / "aa" / "old.png")}
    assert [(found.st_mode & 0o7777, found.st_gid) for found in seen.values()] == [
        (0o710, user.gid),
        (0o2750, user.gid),
        (0o640, user.gid),
    ]
    assert (stack / "data" / "router.db").stat().st_gid == 0
    assert (tmp_path.stat().st_mode & 0o777, tmp_path.stat().st_gid) == (0o700, 0)
    assert not may_send_from(artifacts, user), "its folder is in one that bars the edge"


async def test_folders_that_are_not_the_stacks_are_left_alone(tmp_path: Path) -> None:
    user = edge_user()
    if user is None:
        pytest.skip("only root's edge runs as another user")
    settings = EdgeSettings("127.0.0.1", 1, tmp_path / "r", tmp_path / "edge", Path("/run/lp-test"), tmp_path / "logs")
    with pytest.raises(EdgeError, match="is not in the stack's"):
        await edge(replace(settings, artifacts=ArtifactsFolder(tmp_path / "a", tmp_path / "stack"), user=user))
    shutil.rmtree("/run/lp-test", ignore_errors=True)
