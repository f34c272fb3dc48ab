"""Gets the Pulumi engine onto this machine; the Python package alone cannot do anything.

In order: `LETTERPRESS_PULUMI`, a compatible `pulumi` on PATH, the cache, the official release, a build
from source with Go. The last works wherever a Go module proxy is reachable and nothing else is (about
four minutes on two cores). What is installed lies in the cache, outside the checkout, under its
version, and is believed only after it has said that version itself.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version as package_version
from pathlib import Path

from infra.errors import InfraError

ENGINE_VERSION = package_version("pulumi")
"""The engine and its Python package are used at one version; infra/setup/engine/go.mod names it too."""

GO_MINIMUM = (1, 25)
RELEASE_TIMEOUT_S = 300
SAY_EVERY_S = 20
SOURCE = Path(__file__).parent / "engine"
"""A Go module of our own whose one tool is the engine's command."""

Say = Callable[[str], None]


class SetupError(InfraError):
    """Something this machine needs could not be installed; the message says what was tried and what to do."""


def cache_root() -> Path:
    """Letterpress's cache, shared by every checkout of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "letterpress"


def find_engine() -> Path | None:
    """The engine's binary if this machine has a compatible one."""
    candidates = [os.environ.get("LETTERPRESS_PULUMI"), shutil.which("pulumi"), str(_cached())]
    return next((Path(path) for path in candidates if path and _usable(Path(path))), None)


def ensure_engine(say: Say) -> Path:
    """The engine's binary, installed now if need be. `say` is told what is going on, a line at a time."""
    if found := find_engine():
        return found
    with _only_one(cache_root() / "pulumi.lock", say):
        if found := find_engine():  # whoever held the lock before us installed it
            return found
        tried = []
        for what, attempt in (("the official release", _download), ("a build from source", _build)):
            try:
                attempt(say)
            except (SetupError, OSError, subprocess.SubprocessError) as error:
                tried.append(f"  - {what}: {error}")
                say(f"not to be had as {what}: {error}")
                continue
            if _usable(_cached()):
                return _cached()
            tried.append(f"  - {what}: what came does not say that it is v{ENGINE_VERSION}")
    raise SetupError(
        f"The Pulumi engine {ENGINE_VERSION} is not here and could not be installed:\n"
        + "\n".join(tried)
        + f"\nInstall it yourself (v{ENGINE_VERSION} or a later v3, on PATH or named by LETTERPRESS_PULUMI=/path), "
        f"or install Go {GO_MINIMUM[0]}.{GO_MINIMUM[1]} or newer, and run the same command again."
    )


def _cached() -> Path:
    return cache_root() / "pulumi" / ENGINE_VERSION / "bin" / "pulumi"


def _usable(binary: Path) -> bool:
    """Whether `binary` says a version that our Python package may drive: the same major, not older."""
    try:
        said = subprocess.run(
            [binary, "version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "1"},
        )
    except OSError:
        return False
    return said.returncode == 0 and compatible(said.stdout.strip(), ENGINE_VERSION)


def compatible(found: str, wanted: str) -> bool:
    """Whether engine version `found` (v3.260.1) serves a package of version `wanted` (3.258.0)."""
    have, want = _numbers(found), _numbers(wanted)
    return have is not None and want is not None and have[0] == want[0] and have >= want


def _numbers(version: str) -> tuple[int, int, int] | None:
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _download(say: Say) -> None:
    say(f"fetching the Pulumi engine {ENGINE_VERSION} (the official release)")
    # In a process of its own: the installer has no time-out, and a half-open network must not hold us.
    code = (
        "import sys; from pulumi.automation import PulumiCommand; from semver import VersionInfo; "
        "PulumiCommand.install(root=sys.argv[1], version=VersionInfo.parse(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(_cached().parent.parent), ENGINE_VERSION],
        capture_output=True,
        text=True,
        timeout=RELEASE_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise SetupError(_last_line(done.stderr) or "its installer failed without a word")


def _build(say: Say) -> None:
    go = _go()
    started = time.monotonic()
    say(f"building the Pulumi engine {ENGINE_VERSION} from source; about four minutes on two cores, once")
    _cached().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cached().parent) as folder:
        draft = Path(folder) / "pulumi"
        version_flag = f"-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{ENGINE_VERSION}"
        options = ["-v", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags", f"-s -w {version_flag}"]
        command = [go, "build", *options, "-o", str(draft), "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"]
        said: list[str] = []
        with subprocess.Popen(
            command, cwd=SOURCE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as build:
            told = started
            for line in build.stderr or ():  # -v names each package as it is compiled, of some 2,000
                said.append(line.rstrip())
                now = time.monotonic()
                if now - told > SAY_EVERY_S:
                    told = now
                    say(f"building the Pulumi engine: {len(said)} packages compiled, {now - started:.0f} s")
        if build.returncode != 0:
            raise SetupError("go build failed: " + "; ".join(said[-3:]))
        draft.replace(_cached())
    say(f"built the Pulumi engine {ENGINE_VERSION} in {time.monotonic() - started:.0f} s")


def _go() -> str:
    go = shutil.which("go")
    if not go:
        raise SetupError("needs Go, which is not on PATH")
    said = subprocess.run(
        [go, "env", "GOVERSION"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", said)
    if not match or (int(match[1]), int(match[2])) < GO_MINIMUM:
        raise SetupError(f"needs Go {GO_MINIMUM[0]}.{GO_MINIMUM[1]} or newer; {go} is {said}")
    return go


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@contextmanager
def _only_one(lock: Path, say: Say) -> Iterator[None]:
    """Hold `lock`; whoever comes second waits and then finds the work done."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another Letterpress is installing the Pulumi engine; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
