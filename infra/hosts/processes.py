"""Processes as /proc shows them, and signals that reach the process meant or none.

A pid is a number that is given out again. Here a process is its pid with its start time, and a signal
goes through a pidfd, opened first and compared after, so that it cannot reach a stranger who got the
number meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is alive; `session` is the pid of its session's leader, `start_ticks` since boot."""

    pid: int
    session: int
    start_ticks: int


def process(pid: int) -> Process | None:
    """The process under this number, if it is alive (a zombie is not: nothing of it is left but its name)."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else Process(pid, int(fields[3]), int(fields[19]))


def processes() -> Iterator[Process]:
    """Every process alive that we can see."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (found := process(int(entry.name))):
            yield found


def holds(pid: int, file: os.stat_result) -> bool:
    """Whether the process has this very file open. False for a process whose files we may not see."""
    for descriptor in descriptors(pid):
        with suppress(OSError):  # closed meanwhile, or its target cannot be looked at
            if os.path.samestat(descriptor.stat(), file):
                return True
    return False


def descriptors(pid: int) -> list[Path]:
    """The process's open files, as links under /proc; empty if it is gone or another user's."""
    try:
        return list((PROC / str(pid) / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def command(pid: int) -> str:
    """Its command line for a person, at most 120 characters; empty if it is gone."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return words.decode(errors="replace").strip()[:120]


def started_at(start_ticks: int) -> datetime:
    """The moment in UTC, to the second (the kernel gives its boot time no finer)."""
    boot = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime "))
    return datetime.fromtimestamp(int(boot.split()[1]), UTC) + timedelta(seconds=start_ticks // TICKS_PER_SECOND)


@contextmanager
def handles(targets: Iterable[Process]) -> Iterator[tuple[int, ...]]:
    """A pidfd for each of the processes that is still alive, closed at the end."""
    with ExitStack() as stack:
        opened = []
        for target in targets:
            try:
                pidfd = os.pidfd_open(target.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, pidfd)
            if process(target.pid) == target:
                opened.append(pidfd)
        yield tuple(opened)


def send(pidfd: int, number: signal.Signals) -> None:
    """Signal the process behind the handle; one that is gone needs no signal."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


async def ended(pidfd: int) -> None:
    """Wait until the process behind the handle has ended."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pidfd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(pidfd)
