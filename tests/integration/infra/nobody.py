"""Runs a script as an ordinary user, for real: as `nobody`, from a copy of infra, in a deep folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import infra

_BECOME = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--")


@dataclass(frozen=True)
class Nobody:
    """`deep` is a folder of theirs whose path no unix socket could have, `short` one that it could."""

    python: str
    code: Path
    deep: Path
    short: Path

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_BECOME, self.python, "-c", script, *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.code), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextmanager
def nobody() -> Iterator[Nobody]:
    """Skips the test where we are not root (then the other tests run as an ordinary user already)."""
    if os.getuid() != 0:
        pytest.skip("not root: the other tests run as an ordinary user already")
    python = next(filter(_usable, (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("no Python 3.11 that the user nobody may run")
    base = Path(tempfile.mkdtemp(prefix="lp-"))
    try:
        shutil.copytree(Path(infra.__file__).parent, base / "code/infra", ignore=shutil.ignore_patterns("__pycache__"))
        deep = base.joinpath(*["a-rather-long-folder-name"] * 6)
        deep.mkdir(parents=True)
        for folder in (base, *base.rglob("*")):
            shutil.chown(folder, "nobody")
        yield Nobody(python, base / "code", deep, base)
    finally:
        shutil.rmtree(base)


def _usable(python: str) -> bool:
    check = "import os, sys; sys.exit(sys.version_info < (3, 11) or not os.access(sys.executable, os.X_OK))"
    try:
        return subprocess.run([*_BECOME, python, "-c", check], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
