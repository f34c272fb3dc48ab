"""Which ports of a machine anybody can reach: all of them are tried."""

from __future__ import annotations

import resource
import select
import socket
import time
from contextlib import ExitStack

AT_ONCE = 4096
FILES = 16_384
"""Three machines may be looked at side by side."""
ANSWER_S = 0.6
"""A cable within this computer; what a firewall drops is never answered."""


def open_ports(address: str) -> set[int]:
    """TCP ports that take a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(FILES, hard)), hard))
    found = set[int]()
    for first in range(1, 65536, AT_ONCE):
        found |= _open(address, range(first, min(first + AT_ONCE, 65536)))
    return found


def _open(address: str, ports: range) -> set[int]:
    with ExitStack() as held:
        waiting, poll = dict[int, tuple[int, socket.socket]](), select.poll()
        for port in ports:
            tried = held.enter_context(socket.socket())
            tried.setblocking(False)
            tried.connect_ex((address, port))
            waiting[tried.fileno()] = port, tried
            poll.register(tried, select.POLLOUT)
        found, end = set[int](), time.monotonic() + ANSWER_S
        while waiting and (left := end - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                poll.unregister(descriptor)
                port, tried = waiting.pop(descriptor)
                if tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    found.add(port)
        return found
