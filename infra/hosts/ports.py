"""Is a described address free on this machine, and if not, who holds it?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from pathlib import Path

from infra.hosts import HostError, Listen, PortInUseError
from infra.hosts.processes import PROC, command, descriptors, processes

LISTENING = "0A"
"""`st` of a listening socket in /proc/net/tcp (include/net/tcp_states.h)."""


def require_free(address: Listen, unit: str, ours: Collection[int] = ()) -> None:
    """Raise if `unit` could not listen there: PortInUseError names the holder, HostError any other reason.

    `ours` are processes that are about to end; an address that one of them holds counts as free.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier server that still wind down do not count, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            holder = _holder(address.port) if error.errno == errno.EADDRINUSE else None
            if holder is None or holder not in ours:
                raise _explained(error, address, unit, holder) from error


def _explained(error: OSError, address: Listen, unit: str, holder: int | None) -> HostError:
    match error.errno:
        case errno.EADDRINUSE:
            who = f"process {holder} ({command(holder)})" if holder else "a process that only root can see"
            return PortInUseError(
                f"{unit}: {address} is already in use by {who}; stop that, or change `{address.setting}` in the "
                "stack file"
            )
        case errno.EADDRNOTAVAIL:
            return HostError(
                f"{unit}: {address.host} is not an address of this machine; change `{address.setting}` in the "
                "stack file"
            )
        case errno.EACCES:
            return HostError(
                f"{unit}: only root may listen on {address}; change `{address.setting}` in the stack file to a port "
                "of 1024 or more"
            )
    return HostError(f"{unit}: cannot listen on {address}: {error.strerror}; see `{address.setting}` in the stack file")


def _holder(port: int) -> int | None:
    """The process that holds the TCP port, if we may see it."""
    inodes = _sockets(port)
    for found in processes():
        if any(_target(descriptor) in inodes for descriptor in descriptors(found.pid)):
            return found.pid
    return None


def _sockets(port: int) -> set[str]:
    """The sockets on a local port as /proc/PID/fd names them; the listening ones if there are any."""
    listening: set[str] = set()
    others: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                (listening if fields[3] == LISTENING else others).add(f"socket:[{fields[9]}]")
    return listening or others


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:  # closed meanwhile, or not ours to look at
        return ""
