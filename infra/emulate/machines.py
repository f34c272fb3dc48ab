"""What an emulated rental really is. One small protocol, so that test hosts plug in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Order:
    """What was rented, and whose keys let in (OpenSSH's lines)."""

    id: str
    name: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reach:
    """How a machine is reached by SSH."""

    address: str
    port: int
    user: str


class Rented(Protocol):
    def start(self, order: Order, /) -> Reach:
        """Bring a machine up; it may still be booting when this returns."""
        ...

    def stop(self, machine_id: str, /) -> None:
        """Pull its plug; one that is gone is no error."""
        ...


@dataclass(frozen=True, slots=True)
class Nowhere:
    """Machines that are paid for and cannot be reached: enough for whoever tries renting alone."""

    def start(self, _order: Order, /) -> Reach:
        return Reach("127.0.0.1", 9, "ubuntu")  # the discard port

    def stop(self, _machine_id: str, /) -> None:
        pass
