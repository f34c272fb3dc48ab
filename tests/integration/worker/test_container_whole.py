"""The worker's image as it is delivered, torch with CUDA's libraries and all: minutes, and 12 GB of disk meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.images import Images, Running, copy_of_the_tree, members, require_tools
from tests.ports import free_ports
from tests.waiting import eventually
from worker.contract import EVENT, Finished, GenerationRequest

ROOT = Path(__file__).parents[3]
UID = 10001
START_S = 300.0
TOKEN = "a-token-for-these-tests"
CANARY = "canary-5f1c7e0d"
WEIGHTS = (".safetensors", ".ckpt", ".gguf")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """A store of its own: nobody keeps six gigabytes between two runs."""
    require_tools()
    store = Images(tmp_path_factory.mktemp("images"))
    yield store
    store.buildah("rm", "--all")
    store.buildah("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def image(images: Images, tmp_path_factory: pytest.TempPathFactory) -> str:
    context = copy_of_the_tree(ROOT, tmp_path_factory.mktemp("context"))
    (context / ".letterpress").mkdir()
    (context / ".letterpress" / "api-key").write_text(CANARY)
    return images.build(context, "localhost/letterpress-whole", {}, HF_TOKEN=CANARY)


@pytest.mark.soak
def test_the_delivered_image_serves_by_itself_and_holds_no_secret(
    images: Images, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    cache, token, log = tmp_path / "cache", tmp_path / "token", tmp_path / "log"
    cache.mkdir()
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    for path in (cache, token):
        os.chown(path, UID, UID)
    settings = {"PORT": str(port), "TOKEN_FILE": "/run/token", "DEVICE": "cpu", "CPU_THREADS": "1"}
    with images.container(image) as container:
        assert "weights" in container.run("letterpress", "weights", "--help")
        assert "no weights are on this machine" in container.run("letterpress", "weights", "check")
        running = container.start(
            None,
            log,
            {cache: "/cache", token: "/run/token"},
            **{f"LETTERPRESS_WORKER_{name}": value for name, value in settings.items()},
        )
        try:
            _serves(running, port)
        finally:
            running.kill()

    sizes = []
    for layer in images.layers(image, tmp_path / "layers"):
        largest = ""
        for name, contents in members(layer):
            assert CANARY.encode() not in contents, name
            assert not name.endswith(WEIGHTS), name
            largest = max(largest, f"{len(contents):012d} {name}")
        sizes.append(f"{layer.stat().st_size / 1e6:8.1f} MB  largest: {largest[13:]}")
        layer.unlink()
    with capsys.disabled():
        print("", *sizes, sep="\n")


def _serves(running: Running, port: int) -> None:
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False
    ) as http:

        def ready() -> bool:
            assert running.process.poll() is None, running.log.read_text()
            try:
                return http.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready, START_S, "the worker says ready")
        worker = running.find("-m worker")
        assert worker is not None
        assert set(worker.uids()) == {UID}
        wanted = GenerationRequest(prompt="three foxes", width=256, height=256, steps=2, seed=1)
        with http.stream("PUT", "/generations/a.1", content=wanted.model_dump_json()) as response:
            last = EVENT.validate_json([line for line in response.iter_lines() if line][-1])
        assert isinstance(last, Finished)
        running.signal(15)
        assert running.end() == 0
