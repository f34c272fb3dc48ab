"""Container images built and run for real, without a container engine: buildah, on a base that debootstrap makes.

Nothing here starts a daemon. buildah's chroot isolation runs an image's programs under its users on its own
files, in this machine's network; that much is what the tests need. Layers are kept between runs, outside the
tree, under the digest of what they are made of.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

SUITE = "bookworm"
INCLUDE = "python3,python3-venv,ca-certificates"
CERTIFICATES = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
"""A network that speaks with certificates of its own does so within a build too."""
MANY_LAYERS = 400
BUILD_S = 1800
Inspected = dict[str, Any]


def kept_folder() -> Path:
    """Where the base and the layers of small images wait for the next run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "letterpress" / "test-images"


def require_tools() -> None:
    """Skip the test where images cannot be built, and say why."""
    for tool in ("buildah", "debootstrap"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (`letterpress setup` installs it where that is allowed)")
    if os.geteuid() != 0:
        pytest.skip("building an image with buildah's chroot isolation needs root")


@dataclass(frozen=True, slots=True)
class Images:
    """One store of images below `folder`."""

    folder: Path

    def buildah(self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 300) -> str:
        """What buildah prints; AssertionError with its last words if it fails."""
        done = subprocess.run(
            [*self._command(), *arguments],
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def build(self, context: Path, name: str, arguments: Mapping[str, str], target: str = "", **env: str) -> str:
        """The image of worker/Dockerfile in `context`, on the base; layers that are there already are not made anew."""
        with self._alone():
            self._tidy()
            base = self._base()
            options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
            options += [f"--target={target}"] if target else []
            options += [f"--volume={path}:{path}:ro" for path in CERTIFICATES if Path(path).is_dir()]
            options += [f"--volume={_uv_cache()}:/uv", "--build-arg=UV_CACHE_DIR=/uv"]
            options += ["--isolation=chroot", "--layers", "--format=docker", f"--build-arg=BASE_IMAGE={base}"]
            dockerfile = str(context / "worker" / "Dockerfile")
            self.buildah("build", *options, "-f", dockerfile, "-t", name, str(context), env=env, timeout_s=BUILD_S)
        return name

    def described(self, image: str) -> Inspected:
        """Its configuration as Docker writes it."""
        described: Inspected = json.loads(self.buildah("inspect", "--type=image", image))
        config: Inspected = described["Docker"]["config"]
        return config

    def layers(self, image: str, folder: Path) -> list[Path]:
        """Its layers as tar files below `folder`, the lowest first."""
        self.buildah("push", "--format=v2s2", "--disable-compression", image, f"dir:{folder}", timeout_s=BUILD_S)
        manifest = json.loads((folder / "manifest.json").read_text())
        return [folder / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]

    @contextmanager
    def container(self, image: str) -> Iterator[Container]:
        """A container of `image`, in which programs can be run until the block ends."""
        name = self.buildah("from", "--pull-never", image)
        try:
            config = self.described(image)
            for path in config.get("Volumes") or {}:
                # Where the image declares a volume and a run mounts another there, buildah sorts the two by chance:
                # half of the runs saw the container's own.
                self.buildah("config", f"--volume={path}-", name)
            yield Container(self, name, config)
        finally:
            self.buildah("rm", name)

    def _command(self) -> list[str]:
        return [
            "buildah",
            f"--root={self.folder / 'storage'}",
            f"--runroot={self.folder / 'run'}",
            f"--storage-driver={_driver()}",
        ]

    def _base(self) -> str:
        digest = hashlib.sha256(f"{SUITE} {INCLUDE}".encode()).hexdigest()[:12]
        name = f"localhost/letterpress-test-base:{digest}"
        if name in self.buildah("images", "--format={{.Name}}:{{.Tag}}").splitlines():
            return name
        archive = kept_folder() / f"{SUITE}-{digest}.tar"
        if not archive.exists():
            _debootstrap(archive)
        container = self.buildah("from", "scratch")
        self.buildah("add", "-q", container, str(archive), "/")
        self.buildah("commit", "-q", container, name)
        self.buildah("rm", container)
        return name

    def _tidy(self) -> None:
        """Begin anew when layers of many old trees have gathered."""
        if len(self.buildah("images", "-aq").splitlines()) > MANY_LAYERS:
            self.buildah("rm", "--all")
            self.buildah("rmi", "--all", "--force")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Any number of copies of the suite may run; they build one after the other."""
        kept_folder().mkdir(parents=True, exist_ok=True)
        with (kept_folder() / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True, slots=True)
class Container:
    images: Images
    name: str
    config: Inspected

    def start(self, command: Sequence[str] | None, log: Path, volumes: Mapping[Path, str], **env: str) -> Running:
        """Start `command` behind the image's entry point; None is the image's own command."""
        arguments = [*self.config["Entrypoint"], *(self.config["Cmd"] if command is None else command)]
        options = ["--isolation=chroot"]
        options += [f"--volume={source}:{target}" for source, target in volumes.items()]
        options += [f"--env={key}={value}" for key, value in env.items()]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self.images._command(), "run", *options, self.name, "--", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Running(process, log)

    def run(self, *command: str, user: str = "", volumes: Mapping[Path, str] | None = None, **env: str) -> str:
        """What `command` prints, without the entry point, as the image's user or as another."""
        options = ["--isolation=chroot", *([f"--user={user}"] if user else [])]
        options += [f"--volume={source}:{target}" for source, target in (volumes or {}).items()]
        options += [f"--env={key}={value}" for key, value in env.items()]
        return self.images.buildah("run", *options, self.name, "--", *command)


@dataclass(frozen=True, slots=True)
class Running:
    """What `start` started. The entry point runs below buildah, in this machine's process table."""

    process: subprocess.Popen[bytes]
    log: Path

    def find(self, program: str) -> psutil.Process | None:
        """The first process below whose command line holds `program`."""
        with_it = (each for each in self._below() if program in " ".join(_command_line(each)))
        return next(with_it, None)

    def signal(self, number: int) -> None:
        """As a container engine does: to the entry point."""
        first = [each for each in self._below() if _name(each) == "tini"]
        assert first, self.log.read_text()
        first[0].send_signal(number)

    def end(self, within_s: float = 60) -> int:
        """Its exit status. What it leaves behind is ended, as the end of a container's first process does."""
        below = self._below()
        try:
            return self.process.wait(within_s)
        finally:
            _kill(below)

    def kill(self) -> None:
        """Everything that was started, whatever it does."""
        _kill(self._below())
        self.process.kill()
        self.process.wait()

    def _below(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def _kill(processes: Sequence[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):  # psutil knows one process from a later one of the same number
            each.kill()


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def copy_of_the_tree(root: Path, target: Path) -> Path:
    """What git has of the tree, as a context to build from."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


def members(layer: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a layer: its path and its bytes."""
    with tarfile.open(layer) as archive:
        for member in archive:
            contents = archive.extractfile(member) if member.isfile() else None
            yield member.name, contents.read() if contents else b""


@functools.cache
def _driver() -> str:
    """overlay shares the lower layers; where it may not be mounted, vfs copies them."""
    kept_folder().mkdir(parents=True, exist_ok=True)
    store = (f"--root={kept_folder() / 'storage'}", f"--runroot={kept_folder() / 'run'}")
    tried = subprocess.run(
        ["buildah", *store, "--storage-driver=overlay", "images"], capture_output=True, check=False, timeout=60
    )
    return "vfs" if tried.returncode else "overlay"


def _debootstrap(archive: Path) -> None:
    root = archive.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    try:
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={INCLUDE}", SUITE, root],
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_S,
        )
        if made.returncode:
            pytest.skip(f"debootstrap could not make a base image: {made.stdout[-300:]} {made.stderr[-300:]}")
        draft = archive.with_suffix(".draft")
        subprocess.run(["tar", "-C", root, "-cf", draft, "."], check=True, timeout=300)
        draft.replace(archive)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _uv_cache() -> Path:
    folder = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
