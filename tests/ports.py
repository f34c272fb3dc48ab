"""Free ports for servers that tests start."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack
from pathlib import Path

LOWEST = 10_000
_DRAWN = random.SystemRandom()
"""Hypothesis makes the ordinary one draw the same in every process."""


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports that nobody listened on a moment ago.

    They are drawn below those that the kernel gives to whoever asks for any, or is about to connect: it may give
    such a one away before the server that it was meant for has it. Another test's draw may be the same; the chance is
    small, and a server that meets it says so by name.
    """
    highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = list[int]()
    with ExitStack() as held:
        while len(ports) < count:
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            port = _DRAWN.randrange(LOWEST, highest)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                ports.append(port)
    return ports
