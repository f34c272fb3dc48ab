"""One operation on a stack at a time, and nothing left of one that was killed.

A lock of ours, held through a descriptor and so gone with its holder, keeps two commands apart. Under it,
whatever still works for this stack belongs to a command that was killed: every engine and provider is
started with a mark in its environment, and found by that, not by a name. What a killed engine leaves in
the backend, Pulumi's own lock, is judged here too.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.errors import InfraError
from infra.hosts.processes import PROC, Process, command, ended, handles, process, processes, send, started_at

MARK = "LETTERPRESS_OPERATION"
"""Holds the stack's folder, in the environment of every engine and provider that works on it."""

INTERRUPT_GRACE_S = 15.0
"""How long an orphaned engine may take to write down what it was doing, after a SIGINT."""
KILL_GRACE_S = 5.0
CLOCK_SLACK_S = 2.0
"""Start times are known to the second, a lock's time is rounded, too."""

LOCK_LINE = re.compile(r"created by (?P<user>\S+)@(?P<host>\S+) \(pid (?P<pid>\d+)\) at (?P<at>\S+)")
"""How every backend that is files (a folder, S3, …) names a lock's owner."""


class BusyError(InfraError):
    """Another operation holds the stack; the message says who, since when, and what to do."""


@contextmanager
def only_operation(lock: Path, what: str) -> Iterator[None]:
    """Hold the stack for one operation, `what` in a word. BusyError names who holds it now."""
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another command"
            raise BusyError(
                f"stack {lock.parent.name}: {holder} is under way; wait for it, or interrupt it (it stops cleanly)"
            ) from None
        file.truncate(0)
        file.write(f"`{what}` (process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC)\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def orphans(root: Path) -> tuple[Process, ...]:
    """Engines and providers that work on this stack. While we hold its lock, nobody is left to want them."""
    wanted = f"{MARK}={root}".encode()
    return tuple(found for found in processes() if found.pid != os.getpid() and wanted in _environment(found.pid))


async def end_orphans(found: Sequence[Process]) -> None:
    """Let the engines finish what they are writing (their providers end with them), then end what is left."""
    engines = [each for each in found if each.pid == each.session]
    for number, targets, grace in (
        (signal.SIGINT, engines, INTERRUPT_GRACE_S),
        (signal.SIGKILL, found, KILL_GRACE_S),
    ):
        with handles(targets) as asked, handles(found) as awaited:
            for pidfd in asked:
                send(pidfd, number)
                send(pidfd, signal.SIGCONT)  # one that is stopped would not notice
            try:
                async with asyncio.timeout(grace):
                    await asyncio.gather(*(ended(pidfd) for pidfd in awaited))
                return
            except TimeoutError:
                continue


@dataclass(frozen=True, slots=True)
class BackendLock:
    """A lock in the backend, as the engine describes it."""

    user: str
    host: str
    pid: int
    at: datetime

    def __str__(self) -> str:
        return f"{self.user}@{self.host} (process {self.pid}) since {self.at:%Y-%m-%d %H:%M:%S} UTC"


def backend_locks(complaint: str) -> tuple[BackendLock, ...]:
    """The locks that the engine names when it refuses to begin."""
    return tuple(
        BackendLock(each["user"], each["host"], int(each["pid"]), datetime.fromisoformat(each["at"]).astimezone(UTC))
        for each in LOCK_LINE.finditer(complaint)
    )


def require_orphaned(locks: Sequence[BackendLock], stack: str) -> None:
    """Raise BusyError unless every lock's owner is proven dead: a process of this host that is no more."""
    if not locks:
        raise BusyError(
            f"stack {stack}: its Pulumi backend says that another update is in progress, and not whose; wait for it, "
            "or, if you are sure that it is dead, run `pulumi cancel` against that backend"
        )
    for lock in locks:
        if lock.host != socket.gethostname():
            raise BusyError(
                f"stack {stack}: locked by {lock}, on another machine; wait for it, or, if you are sure that it is "
                "dead, run `pulumi cancel` against its backend"
            )
        owner = process(lock.pid)
        if owner and (started_at(owner.start_ticks) - lock.at).total_seconds() <= CLOCK_SLACK_S:
            raise BusyError(
                f"stack {stack}: locked by {lock}, which is `{command(lock.pid)}` and was not started by Letterpress; "
                "wait for it, or end it yourself"
            )


def _environment(pid: int) -> tuple[bytes, ...]:
    try:
        return tuple((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ()
