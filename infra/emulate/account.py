"""An emulated provider's account: what is rented, since when, and what it costs by the second.

Its clock is passed in. Rentals boot (`boot_s`), show an address before they can be reached (`address_s`), and end
by their owner, or by the provider, who takes spot machines back.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from infra.emulate.machines import Nowhere, Order, Reach, Rented

STARTS_WITHIN_S = 60.0


@dataclass(slots=True)
class Rental:
    """One machine. Times are seconds since the epoch; `rate` is US dollars an hour."""

    id: str
    name: str
    rate: float
    began: float
    minimum_s: float = 0.0
    details: dict[str, object] = field(default_factory=dict)
    reach: Reach | None = None
    ended: float | None = None
    taken_back: bool = False

    def seconds(self, now: float) -> float:
        """Paid for: never less than the minimum of one that its owner ended."""
        return max(0.0, (self.ended if self.ended is not None else now) - self.began)

    def dollars(self, now: float) -> float:
        return self.seconds(now) * self.rate / 3600.0


@dataclass(slots=True)
class Account:
    """Everything that was ever rented. Safe from several threads at once."""

    machines: Rented = field(default_factory=Nowhere)
    clock: Callable[[], float] = time.time
    boot_s: float = 0.0
    address_s: float = 0.0
    """An address is shown so long after the order, whether or not the machine has booted."""
    rentals: dict[str, Rental] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _starting: int = 0
    _started: threading.Condition = field(default_factory=threading.Condition)

    def rent(self, name: str, rate: float, keys: tuple[str, ...], minimum_s: float = 0.0, **details: object) -> Rental:
        with self.lock:
            rental = Rental(uuid.uuid4().hex[:16], name, rate, self.clock(), minimum_s, dict(details))
            self.rentals[rental.id] = rental
        self._note_starting(1)
        try:
            rental.reach = self.machines.start(Order(rental.id, name, keys))
        except BaseException:  # whatever it is, nobody pays for what never came up; it is raised again
            self.end(rental)
            raise
        finally:
            self._note_starting(-1)
        if rental.ended is not None:  # while it came up
            self.machines.stop(rental.id)
        return rental

    def end(self, rental: Rental, *, taken_back: bool = False) -> None:
        """Stop paying, and pull the plug."""
        with self.lock:
            if rental.ended is not None:
                return
            rental.ended, rental.taken_back = self.clock(), taken_back
        self.machines.stop(rental.id)

    def take_back(self, name_part: str = "") -> list[str]:
        """Lose every machine whose name holds `name_part`, as spot machines are lost: at once, and unannounced."""
        lost = [rental for rental in self.alive() if name_part in rental.name]
        for rental in lost:
            self.end(rental, taken_back=True)
        return [rental.name for rental in lost]

    def alive(self) -> list[Rental]:
        with self.lock:
            return [rental for rental in self.rentals.values() if rental.ended is None]

    def booted(self, rental: Rental) -> bool:
        return self.clock() - rental.began >= self.boot_s

    def address(self, rental: Rental) -> Reach | None:
        """What the provider shows; it may be too early to use it."""
        return rental.reach if self.clock() - rental.began >= self.address_s else None

    def bill(self) -> dict[str, tuple[float, float]]:
        """(seconds, dollars) by name: one line a name, however often it was rented."""
        now = self.clock()
        lines: dict[str, tuple[float, float]] = {}
        for rental in list(self.rentals.values()):
            seconds, dollars = lines.get(rental.name, (0.0, 0.0))
            lines[rental.name] = (seconds + rental.seconds(now), dollars + rental.dollars(now))
        return lines

    def close(self) -> None:
        """The emulator ends: nothing that it rented goes on, not even what it was just bringing up."""
        with self._started:
            self._started.wait_for(lambda: self._starting == 0, STARTS_WITHIN_S)
        for rental in self.alive():
            self.end(rental)

    def _note_starting(self, more: int) -> None:
        with self._started:
            self._starting += more
            self._started.notify_all()
