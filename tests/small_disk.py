"""A disk that is small enough to be filled, for tests of what a full or a read-only one does."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    folder: Path

    def fill(self) -> Path:
        """Take every byte; returns the file that takes them."""
        ballast = self.folder / "ballast"
        descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(descriptor, bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(descriptor)
        return ballast

    def read_only(self) -> None:
        _mount("-o", "remount,ro", self.folder)


@contextmanager
def small_disk(size: str) -> Iterator[SmallDisk]:
    """A tmpfs of `size` (mount's word, as in 4m). Skips the test where mounting is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="lp-disk-"))
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        try:
            yield SmallDisk(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    finally:
        folder.rmdir()


def _mount(*arguments: str | Path) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount(8) here")
    if done.returncode:
        pytest.skip(f"may not mount a small disk here: {done.stderr.strip()}")
