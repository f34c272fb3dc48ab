"""Which process of which machine this worker is, so that whoever drives it can tell a new process from a lost way.

A worker that comes back as another process on the same machine died; one that comes back on another machine
was moved there because the first was lost, which is nobody's fault.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Drawn by the kernel when it starts, the same for every container on it (proc(5))."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`machine` is empty where the kernel does not tell; then nobody knows whether the machine stayed."""

    process: str = ""
    machine: str = ""


def identity(boot_id: Path = BOOT_ID) -> Identity:
    """This process's. The kernel's own id is nobody's business, so its digest stands for it."""
    try:
        machine = hashlib.sha256(boot_id.read_bytes().strip()).hexdigest()[:16]
    except OSError:
        machine = ""
    return Identity(process=secrets.token_hex(8), machine=machine)
