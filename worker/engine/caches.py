"""Whether kernels can be built here, and where they are kept, so that a second start on a machine builds nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from worker.engine import LoadError, NoRoomError

VARIABLE = "TRITON_CACHE_DIR"
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
HEADER = "Python.h"
PACKAGES = "apt-get install gcc libc6-dev python3-dev"


def why_not(headers: Path | None = None) -> str | None:
    """Why no kernel can be built here, with what to install; None if they can.

    `headers` is the folder of Python's; None: the one that this Python names.
    """
    if find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    # As Triton looks for it.
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["gcc", "clang"])):
        found = f"CC={compiler} is not there" if compiler else "there is none"
        return f"Triton builds its kernels with a C compiler and {found}: {PACKAGES}"
    folder = headers or Path(sysconfig.get_paths()["include"])
    if not (folder / HEADER).is_file():
        return f"Triton builds its kernels with Python's headers and {folder}/{HEADER} is not there: {PACKAGES}"
    return None


def kernels(cache: Path, gpu: str) -> Path:
    """The folder for kernels of this GPU model, torch, Triton and engine version, below the worker's cache.

    `gpu` is its name as torch has it. A root of the operator's own, in VARIABLE, takes the cache's place.
    """
    model = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-")
    key = f"{model}_torch-{version('torch')}_triton-{version('triton')}_{version('letterpress')}"
    own = os.environ.get(VARIABLE)
    if own is None:
        return cache / "kernels" / key
    # Set by `use` for an engine that this process loaded before, it is such a folder already.
    return Path(own) if Path(own).name == key else Path(own) / key


@dataclass(frozen=True, slots=True)
class KernelCache:
    """A folder of kernels, and how many lay there `before` this process."""

    folder: Path
    before: int

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around whatever may build a kernel. NoRoomError if the disk does not take one: from then on this process
        keeps those that it builds in memory, if there is room."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                os.environ[VARIABLE] = tempfile.mkdtemp(prefix="letterpress-kernels-", dir=MEMORY)
            raise NoRoomError(_refused(self.folder, error)) from error
        except subprocess.CalledProcessError as error:
            raise LoadError(
                f"a kernel cannot be built ({error}); the log has the compiler's words: {PACKAGES}"
            ) from error

    @property
    def built(self) -> int:
        """How many this process has added: none, if an earlier one has done the same work here."""
        return _count(self.folder) - self.before


def use(folder: Path) -> KernelCache:
    """Have Triton keep its kernels in `folder`; to be called before any is built. Raises LoadError."""
    os.environ[VARIABLE] = str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoRoomError(_refused(folder, error)) from error
    return KernelCache(folder, _count(folder))


def _refused(folder: Path, error: OSError) -> str:
    return (
        f"{folder}: kernels cannot be kept there ({error}); make room there, or name another folder as "
        "LETTERPRESS_WORKER_CACHE_DIR"
    )


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.cubin"))
