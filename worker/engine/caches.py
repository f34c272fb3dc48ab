"""Where built kernels are kept, so that a second start on the same machine builds nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from worker.engine import LoadError

VARIABLE = "TRITON_CACHE_DIR"


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
        raise LoadError(f"{folder}: kernels cannot be kept there ({error.strerror}); name another cache_dir") from error
    return KernelCache(folder, _count(folder))


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.cubin"))
