"""How one machine is reached, and how long we try."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """A machine's SSH. `id` is what its host key is pinned under: addresses and ports are used again by others.

    `key` is the private key's file. `password` is what sudo asks of `user`; empty where it asks nothing.
    """

    id: str
    address: str
    port: int
    user: str
    key: Path
    password: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """What messages call it: its name, and where it is."""
        return f"{self.id} ({self.address})"

    def __str__(self) -> str:
        return f"{self.user}@{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `reach_s` is for a machine that still boots, `login_s` for one that answers and lacks our key yet."""

    reach_s: float = 20.0
    login_s: float = 0.0


BOOTING = Patience(reach_s=900.0, login_s=180.0)
"""A rented machine: minutes until sshd answers, and some more until its keys are in place."""
