"""What another user of this computer sees: everybody's command lines, and the files that they may read."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.emulate.hosts.machine import TestMachine

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
PYTHON = Path("/usr/bin/python3")
"""The system's own, which anybody may run."""
AT_ONCE = 500
"""Files that one grep is given."""
WATCH = """
import os, select, sys
seen = set()
while not select.select([0], [], [], 0.25)[0]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for what in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{what}", "rb") as file:
                    seen.add(file.read())
            except OSError:
                pass
sys.stdout.buffer.write(b"\\n".join(seen))
"""


@dataclass
class Onlooker:
    """Looks four times a second, as the user nobody."""

    process: subprocess.Popen[bytes]
    _seen: bytes | None = None

    def stop(self) -> bytes:
        """All command lines and environments that could be read so far, of the machines within this computer, too."""
        if self._seen is None:
            self._seen, _ = self.process.communicate(b"enough\n", timeout=30)
        return self._seen


@contextmanager
def onlooker() -> Iterator[Onlooker]:
    if not PYTHON.exists():
        pytest.skip(f"another user needs {PYTHON}")
    words = [*NOBODY, str(PYTHON), "-IS", "-c", WATCH]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watch:
        looks = Onlooker(watch)
        try:
            yield looks
        finally:
            looks.stop()


def readable(
    folders: Sequence[Path], texts: Collection[bytes], on: TestMachine | None = None, since: float = 0.0
) -> list[str]:
    """Files below `folders`, here or on a machine, that hold one of `texts` and that the user nobody may read: of
    those that have changed `since` that second. (A machine shows this computer's own files, too, gigabytes of them.)"""
    changed = _said(("find", *map(str, folders), "-type", "f", "-newerct", f"@{since:.0f}", "-readable"), b"", on)
    found, patterns = [], b"\n".join(texts) + b"\n"
    for i in range(0, len(changed), AT_ONCE):
        found += _said(("grep", "-lsaF", "-f", "-", "--", *changed[i : i + AT_ONCE]), patterns, on)
    return found


def entered(folders: Sequence[Path], on: TestMachine | None = None) -> list[str]:
    """All files there that the user nobody may read: whoever finds none has not looked."""
    return _said(("grep", "-rlsa", "-e", "", *map(str, folders)), b"", on)


def _said(words: Sequence[str], given: bytes, on: TestMachine | None) -> list[str]:
    there = ("nsenter", "-t", str(on.init_pid), "-m", "-p", "-n", "--") if on else ()
    done = subprocess.run([*there, *NOBODY, *words], input=given, capture_output=True, check=False, timeout=120)
    return done.stdout.decode(errors="replace").splitlines()
