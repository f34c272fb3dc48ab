"""The worker's container, built from its Dockerfile and run: by whom, with what in it, and how it ends.

The image that is built here has all stages, and every file but torch and what comes with it: this
environment's own packages are mounted in their place, so that the tiny model runs in it without five
gigabytes being copied. `test_container_whole.py` (soak) builds the image as it is delivered.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.images import Container, Images, Running, copy_of_the_tree, kept_folder, members, require_tools
from tests.ports import free_ports
from tests.waiting import eventually
from worker.contract import EVENT, Finished, GenerationRequest, Step

ROOT = Path(__file__).parents[3]
START_S = 120.0
UID = 10001
TOKEN = "a-token-for-these-tests"
CANARY = "canary-5f1c7e0d"
"""Stands in every place of a tree and an environment where a secret may be."""
PYTHON_OF_THE_BASE = (3, 11)
WEIGHTS = (".safetensors", ".ckpt", ".gguf")


@pytest.fixture(scope="module")
def images() -> Images:
    require_tools()
    return Images(kept_folder())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree, with secrets and weights where people have them."""
    context = copy_of_the_tree(ROOT, tmp_path_factory.mktemp("context"))
    for secret in (".letterpress/local/secrets/api-key", ".env", "hf_token", "worker/.netrc", ".git/config"):
        (context / secret).parent.mkdir(parents=True, exist_ok=True)
        (context / secret).write_text(CANARY)
    (context / "weights.safetensors").write_text(CANARY)
    return context


def build(images: Images, tree: Path, target: str = "") -> str:
    name = f"localhost/letterpress-test-{target or 'worker'}"
    return images.build(tree, name, {"EXTRA": ""}, target, HF_TOKEN=CANARY, AWS_SECRET_ACCESS_KEY=CANARY)


@pytest.fixture(scope="module")
def image(images: Images, tree: Path) -> str:
    return build(images, tree)


@pytest.fixture(scope="module")
def container(images: Images, image: str) -> Iterator[Container]:
    with images.container(image) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Volume:
    """A cache volume with the tiny model in it, and a token file."""

    folder: Path
    token: Path

    def mounted(self) -> dict[Path, str]:
        return {self.folder: "/cache", self.token: "/run/token", site_packages(): "/opt/site:ro"}


def site_packages() -> Path:
    if sys.version_info[:2] != PYTHON_OF_THE_BASE:
        pytest.skip("the base image's Python takes no packages of this one's version")
    return Path(sysconfig.get_path("purelib"))


@pytest.fixture
def volume(tmp_path: Path, tiny_cache: Path) -> Volume:
    folder, token = tmp_path / "cache", tmp_path / "token"
    shutil.copytree(tiny_cache, folder / "letterpress")
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    for path in [folder, token, *folder.rglob("*")]:
        os.chown(path, UID, UID)
    return Volume(folder, token)


@pytest.fixture
def start(volume: Volume, tmp_path: Path) -> Iterator[Callable[..., tuple[Running, httpx.Client]]]:
    """Starts the entry point on a free port; all is gone when the test ends."""
    started: list[tuple[Running, httpx.Client]] = []

    def start(container: Container, *command: str, **env: str) -> tuple[Running, httpx.Client]:
        (port,) = free_ports(1)
        settings = {
            "PYTHONPATH": "/opt/letterpress/code:/opt/site",
            "LETTERPRESS_WORKER_PORT": str(port),
            "LETTERPRESS_WORKER_TOKEN_FILE": "/run/token",
            "LETTERPRESS_WORKER_DEVICE": "cpu",
            "LETTERPRESS_WORKER_CPU_THREADS": "1",
            "LETTERPRESS_WORKER_CACHE_DIR": "/cache/letterpress",
            **env,
        }
        given = {name: value for name, value in settings.items() if value}
        running = container.start(command or None, tmp_path / "log", volume.mounted(), **given)
        http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
            trust_env=False,
        )
        started.append((running, http))
        return running, http

    yield start
    for running, http in started:
        running.kill()
        http.close()


def ready(running: Running, http: httpx.Client, path: str = "/readyz") -> bool:
    assert running.process.poll() is None, running.log.read_text()
    try:
        return http.get(path).status_code == 200
    except httpx.TransportError:
        return False


def wanted(seed: int, steps: int = 2) -> str:
    return GenerationRequest(prompt="three foxes", width=256, height=256, steps=steps, seed=seed).model_dump_json()


def test_the_image_says_who_it_runs_as_how_it_is_asked_after_and_how_it_is_stopped(
    images: Images, image: str, tree: Path
) -> None:
    config = images.described(image)
    assert config["User"] == f"{UID}:{UID}"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert list(config["Volumes"]) == ["/cache"]
    assert (config["Entrypoint"], config["Cmd"]) == (["tini", "--", "letterpress-container"], ["server"])
    assert CANARY not in json.dumps(config)
    # Or kernels would lie apart from the weights, and those of every card in one folder.
    assert not [one for one in config["Env"] if one.startswith("TRITON_CACHE_DIR=")]
    pod = images.described(build(images, tree, "pod"))
    assert (pod["User"], pod["Cmd"], list(pod["ExposedPorts"])) == ("0", ["pod"], ["22/tcp"])


def test_no_layer_holds_a_secret_weights_or_keys_of_a_host(images: Images, image: str, tmp_path: Path) -> None:
    seen = 0
    for layer in images.layers(image, tmp_path / "layers"):
        for name, contents in members(layer):
            seen += 1
            assert CANARY.encode() not in contents, name
            assert not name.endswith(WEIGHTS), name
            assert "ssh_host_" not in name, name
            assert not name.startswith(("src/", "tmp/wheel")), name
    assert seen > 5000


def test_it_is_nobody_that_may_change_anything_but_its_volume(container: Container) -> None:
    assert container.run("id", "-u") == str(UID)
    assert container.run("sh", "-c", "touch /cache/x && rm /cache/x && echo written") == "written"
    for place in ("/opt/letterpress", "/usr/local/bin", "/etc"):
        assert container.run("sh", "-c", f"touch {place}/x 2>/dev/null || echo refused") == "refused"


def test_it_can_compile_what_triton_compiles(container: Container) -> None:
    program = "#include <Python.h>\\nPyMODINIT_FUNC PyInit_x(void) { return PyLong_FromLong(Py_REFCNT(Py_None) > 0); }"
    compiled = container.run(
        "sh",
        "-c",
        f"printf '{program}' >/cache/x.c && gcc -shared -fPIC -O1 $(python3-config --includes) "
        "/cache/x.c -o /cache/x.so && rm /cache/x.c /cache/x.so && echo compiled",
    )
    assert compiled == "compiled"


def test_the_command_is_there_with_the_verbs_that_its_packages_serve(container: Container) -> None:
    assert "weights" in container.run("letterpress", "--help")
    assert "pip" not in container.run(
        "sh", "-c", "ls /opt/letterpress/bin; ls /opt/letterpress/lib/python3*/site-packages"
    )


def test_as_a_server_it_makes_an_image_is_healthy_and_drains(
    container: Container, start: Callable[..., tuple[Running, httpx.Client]]
) -> None:
    running, http = start(container)
    eventually(lambda: ready(running, http), START_S, "the worker says ready")
    worker = running.find("-m worker")
    assert worker is not None
    assert set(worker.uids()) == {UID}
    port = str(http.base_url.port)
    assert container.run("python3", "-m", "worker.container.health", LETTERPRESS_WORKER_PORT=port) == ""

    with http.stream("PUT", "/generations/a.1", content=wanted(1, steps=40)) as response:
        lines = (EVENT.validate_json(line) for line in response.iter_lines() if line)
        next(event for event in lines if isinstance(event, Step))
        running.signal(signal.SIGTERM)
        end = list(lines)[-1]
        assert isinstance(end, Finished)
    image = http.get("/generations/a.1/image").content
    assert hashlib.sha256(image).hexdigest() == end.sha256
    assert Image.open(io.BytesIO(image)).size == (256, 256)
    assert running.end() == 0
    assert TOKEN not in running.log.read_text()
    with pytest.raises(AssertionError, match="does not answer"):
        container.run("python3", "-m", "worker.container.health", LETTERPRESS_WORKER_PORT=port)


def test_as_a_serverless_worker_it_answers_a_job(
    container: Container, start: Callable[..., tuple[Running, httpx.Client]]
) -> None:
    (port,) = free_ports(1)
    # It knows no port and no token of its own.
    none = {"LETTERPRESS_WORKER_PORT": "", "LETTERPRESS_WORKER_TOKEN_FILE": ""}
    local = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port))
    running, _ = start(container, "serverless", *local, **none)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S, trust_env=False) as http:
        eventually(lambda: ready(running, http, "/"), START_S, "the package's server listens")
        worker = running.find("worker.serverless")
        assert worker is not None
        assert set(worker.uids()) == {UID}
        said = http.post("/runsync", json={"input": json.loads(wanted(1)) | {"format": "webp"}}).json()
    assert said["status"] == "COMPLETED", said
    assert Image.open(io.BytesIO(base64.b64decode(said["output"]["image"]))).format == "WEBP"


def test_as_a_pod_it_is_reached_by_ssh_alone_and_only_sshd_is_root(
    images: Images, tree: Path, start: Callable[..., tuple[Running, httpx.Client]], volume: Volume, tmp_path: Path
) -> None:
    key, known = tmp_path / "key", tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = (tmp_path / "key.pub").read_text().strip()

    def ssh(port: str, *command: str) -> list[str]:
        forward = ["-N", "-L", f"127.0.0.1:{near}:127.0.0.1:{port}"] if not command else []
        return [
            *("ssh", "-F", "none", "-i", str(key), "-p", str(ssh_port), "-o", "BatchMode=yes"),
            *("-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={known}", "-o", "ExitOnForwardFailure=yes"),
            *forward,
            "root@127.0.0.1",
            *command,
        ]

    def pinned(ssh_port: int) -> str | None:
        scan = subprocess.run(
            ["ssh-keyscan", "-t", "ed25519", "-p", str(ssh_port), "127.0.0.1"],
            capture_output=True,
            text=True,
            check=False,
        )
        return scan.stdout if "ssh-ed25519" in scan.stdout else None

    seen: list[str] = []
    with images.container(build(images, tree, "pod")) as container:
        for _ in range(2):  # the second one is the container after a restart, on the same volume
            # Ports of its own: the first one's may be another's by now, with another's host key.
            ssh_port, near = free_ports(2)
            running, http = start(
                container,
                PUBLIC_KEY=public,
                LETTERPRESS_SSH_PORT=str(ssh_port),
                LETTERPRESS_VOLUME="/cache/kept",
                LETTERPRESS_WORKER_TOKEN_FILE="",
            )
            known.write_text(eventually(lambda: pinned(ssh_port), START_S, "sshd answers"))  # noqa: B023
            seen.append(known.read_text().split()[-1])
            port = str(http.base_url.port)
            eventually(lambda: ready(running, http, "/livez"), START_S, "the worker answers")  # noqa: B023
            sshd, worker = running.find("sshd"), running.find("-m worker")
            assert sshd is not None
            assert worker is not None
            assert (set(sshd.uids()), set(worker.uids())) == ({0}, {UID})
            status = Path(f"/proc/{worker.pid}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            assert "CapEff:\t0000000000000000" in status
            assert public not in Path(f"/proc/{worker.pid}/environ").read_text()

            token = subprocess.run(
                ssh(port, "cat", "/cache/kept/worker-token"), capture_output=True, text=True, check=True, timeout=60
            ).stdout.strip()
            forward = subprocess.Popen(ssh(port))
            try:
                with httpx.Client(
                    base_url=f"http://127.0.0.1:{near}", headers={"Authorization": f"Bearer {token}"}, trust_env=False
                ) as through:
                    eventually(lambda: ready(running, through), START_S, "the worker is ready, through the forward")  # noqa: B023
                    with through.stream("PUT", "/generations/a.1", content=wanted(1)) as response:
                        last = EVENT.validate_json([line for line in response.iter_lines() if line][-1])
                    assert isinstance(last, Finished)
            finally:
                forward.kill()
                forward.wait()
            stranger = subprocess.run(
                [*ssh(port, "true")[:3], "-o", "PubkeyAuthentication=no", *ssh(port, "true")[5:]],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert "Permission denied (publickey)" in stranger.stderr
            running.signal(signal.SIGTERM)
            assert running.end() == 0
    assert seen[0] == seen[1], (tmp_path / "log").read_text()


def test_what_a_pod_keeps_for_the_next_start_lies_on_the_volume_that_outlives_it(
    images: Images, tree: Path, start: Callable[..., tuple[Running, httpx.Client]]
) -> None:
    with images.container(build(images, tree, "pod")) as container:
        (ssh_port,) = free_ports(1)
        running, http = start(
            container,
            *("sh", "-c", "mkdir -p /workspace && exec letterpress-container pod"),
            PUBLIC_KEY="ssh-ed25519 AAAA",
            LETTERPRESS_SSH_PORT=str(ssh_port),
            LETTERPRESS_WORKER_TOKEN_FILE="",
        )
        eventually(lambda: ready(running, http, "/livez"), START_S, "the worker answers")
        worker = running.find("-m worker")
        assert worker is not None
        told = worker.environ()
        assert told["HF_HOME"] == "/workspace/letterpress/huggingface"
        assert told["LETTERPRESS_WORKER_CACHE_DIR"] == "/workspace/letterpress/letterpress"
        assert "TRITON_CACHE_DIR" not in told


def test_a_pod_without_a_key_or_without_root_says_what_is_missing(
    container: Container, start: Callable[..., tuple[Running, httpx.Client]]
) -> None:
    running, _ = start(container, "pod", LETTERPRESS_VOLUME="/cache/kept")
    assert running.end() == 78
    assert "sshd needs root; build the image with --target pod" in running.log.read_text()
