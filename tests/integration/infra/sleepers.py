"""Trivial real processes to keep: each sleeps under an argument that nothing else on this computer has."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.hosts import Unit

PATIENCE_S = 20.0


def mark() -> str:
    """A number of seconds, about a day, that is also a name: `sleep` takes its fraction as it comes."""
    return f"86400.{uuid.uuid4().int:039d}"


def sleeper(marked: str, name: str = "sleeper") -> Unit:
    return Unit(name, ("sleep", marked), stop_grace=5.0)


def parent(marked: str, name: str = "parent") -> Unit:
    """A shell with two children, one of which has closed every file that it inherited."""
    script = f"sleep {marked} & sh -c 'exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-; exec sleep {marked}' & wait"
    return Unit(name, ("sh", "-c", script), stop_grace=0.3)


def stubborn(marked: str, grace: float, name: str = "stubborn") -> Unit:
    """Ignores the signal that asks it to stop."""
    script = f"trap '' TERM; echo deaf; exec sleep {marked}"
    return Unit(name, ("sh", "-c", script), stop_grace=grace)


def sleeping(marked: str) -> list[int]:
    """Pids of the processes whose command line has the mark; the test's own never has."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and marked.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of a host's business, the leader of its own session."""
    started = subprocess.Popen([shutil.which("sleep") or "sleep", mark()], start_new_session=True)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def environment(pid: int | None) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def status(pid: int | None) -> dict[str, str]:
    """What /proc says of the process's signals, umask and so on."""
    pairs = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, value in pairs}


def files(pid: int | None) -> set[str]:
    return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds; a failure, not a hang, after twenty seconds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - processes set no events
            await asyncio.sleep(0.01)
