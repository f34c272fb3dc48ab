"""A network namespace as a machine of its own: an address that is reached by a cable, a loopback that is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra.errors import InfraError


class NoMachinesError(InfraError):
    """Machines of their own cannot be had on this computer; the message says what that takes."""


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)


@dataclass(frozen=True)
class Namespace:
    name: str
    cable: str
    address: str
    here: str
    """This computer's address at the cable."""
    inner: str = ""
    """The cable's other end, within."""

    @property
    def within(self) -> tuple[str, ...]:
        """What to put before a command to run it there."""
        return ("ip", "netns", "exec", self.name)

    def pull_the_cable(self) -> None:
        """No packet passes any more, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def put_it_back(self) -> None:
        _ip("link", "set", self.cable, "up")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Gone when the block ends. Raises NoMachinesError where there may be none: it takes root, and a kernel for it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NoMachinesError("a network namespace takes root and iproute2")
    unique = uuid.uuid4()
    short, net = unique.hex[:6], f"10.{64 + unique.bytes[0] % 64}.{unique.bytes[1]}"
    made = Namespace(f"lp-{short}", f"lp-{short}o", f"{net}.2", f"{net}.1", f"lp-{short}i")
    if _ip("netns", "add", made.name).returncode != 0:
        raise NoMachinesError("this kernel, or this container, makes no network namespaces")
    try:
        for words in (
            ("link", "add", made.cable, "type", "veth", "peer", "name", made.inner, "netns", made.name),
            ("addr", "add", f"{made.here}/24", "dev", made.cable),
            ("link", "set", made.cable, "up"),
            ("-n", made.name, "addr", "add", f"{made.address}/24", "dev", made.inner),
            ("-n", made.name, "link", "set", made.inner, "up"),
            ("-n", made.name, "link", "set", "lo", "up"),
            # They reach each other by way of us, and nobody else.
            ("-n", made.name, "route", "add", "default", "via", made.here),
        ):
            done = _ip(*words)
            if done.returncode != 0:
                raise NoMachinesError(f"ip {' '.join(words)}: {done.stderr.strip()}")
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv4/conf/{made.cable}/forwarding").write_text("1")
        yield made
    finally:
        _ip("netns", "del", made.name)
