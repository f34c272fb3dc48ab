"""Becomes a unit: the small program between the local host and the process that it keeps.

The host runs this file by its path with `-I -S`, so it imports a few modules of the standard library
and nothing of ours. It forks; the child takes a session of its own, writes the unit's pid file, holds a
lock on it, and execs the unit, which keeps the lock for as long as it or a child of it lives. The
parent waits for the exec alone and tells the host by its exit status how that went.

What the pid file means is `infra.hosts.record`'s to say; when to launch is `infra.hosts.local`'s.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

FAILED = 70
"""Exit status: the unit could not be started; the reason is on stderr."""
BUSY = 75
"""Exit status: a process holds the unit's pid file already."""

FLOCK = "hhqqi4x"
"""`struct flock` (fcntl(2)) of 64-bit Linux: type, whence, start, length (0: all of the file), pid."""


def lock(descriptor: int) -> None:
    """Lock the file for this open file description, which fork and exec hand on; OSError if it is locked."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def locked(descriptor: int) -> bool:
    """Whether another open file description holds the lock.

    A question that takes no lock itself, unlike flock(2): an observer never gets in a launcher's way.
    """
    query = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, query))[0]
    return kind != fcntl.F_UNLCK


def start_ticks(pid: int | str) -> int:
    """When the process began, in clock ticks since boot: with the pid and the boot id, its identity."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])  # the name in parentheses may hold anything


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def main(arguments: list[str]) -> int:
    """`launch.py MUTEX SPECIFICATION`: a descriptor to keep until the exec, and JSON (`record.Launch`)."""
    mutex, specification = int(arguments[0]), json.loads(arguments[1])
    # Open in us and in the child, closed by its exec: as long as a launch is on its way nobody else
    # starts or ends this unit, even if the command that asked for it has been killed.
    os.set_inheritable(mutex, False)
    ours, childs = os.pipe()  # neither survives an exec: end of file says that it has happened
    if os.fork() == 0:
        _become(specification, childs)
    os.close(childs)
    with os.fdopen(ours) as report:
        failure = report.read()
    if not failure:
        return 0
    print(failure, file=sys.stderr)
    return BUSY if failure.startswith("busy") else FAILED


def _become(specification: dict[str, Any], report: int) -> NoReturn:
    try:
        _prepare(specification)
        os.execvp(specification["argv"][0], specification["argv"])  # noqa: S606 - to become it is the purpose
    except OSError as error:
        os.write(report, f"{error.filename or specification['argv'][0]}: {error.strerror}".encode())
    except _BusyError as error:
        os.write(report, f"busy: {error}".encode())
    finally:
        os._exit(FAILED)


class _BusyError(Exception):
    pass


def _prepare(specification: dict[str, Any]) -> None:
    """Everything but the exec: session, signals, folder, log, and the locked pid file."""
    os.setsid()
    # A shell may have had us ignore SIGINT or SIGHUP, Python ignores SIGPIPE, and a gRPC server may
    # block some: all of that would pass through exec.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)
    os.chdir(specification["folder"])
    held = _hold(specification["record"], specification["pid_file"])
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(specification["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.set_inheritable(held, True)


def _hold(record: dict[str, Any], pid_file: str) -> int:
    """Put the pid file in place, written and locked; whoever opens it never finds it half done."""
    try:
        with Path(pid_file).open("rb") as previous:
            if locked(previous.fileno()):
                raise _BusyError(f"a process holds {pid_file}")
    except FileNotFoundError:
        pass
    draft = pid_file + ".draft"  # one name is enough: whoever launches holds the unit's mutex
    held = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    lock(held)
    identity = {"pid": os.getpid(), "start_ticks": start_ticks("self"), "boot_id": boot_id()}
    os.write(held, json.dumps(identity | record).encode() + b"\n")
    Path(draft).replace(pid_file)
    return held


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
