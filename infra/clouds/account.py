"""What an account with one provider is like with another: a key, a list of machines, the usual refusals."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from infra.clouds import CloudError, Machine
from infra.clouds.wire import Wire


def key_of(environ: Mapping[str, str], variable: str, where: str) -> Callable[[], str]:
    """Gives the API key, at the moment of use. `where` says where a person makes one."""

    def key() -> str:
        if not environ.get(variable):
            raise CloudError(f"{variable} is not set: make a key {where} and give it in the environment")
        return environ[variable]

    return key


def refused(provider: str, status: int, said: str, variable: str, where: str) -> str:
    """What a refusal means and what to do, in a clause; `variable` holds the key."""
    match status:
        case 401:
            return f"{provider} does not take {variable} ({said}); make another {where}"
        case 402:
            return f"{provider} says that the balance does not suffice ({said}); top it up"
        case 403:
            return f"{provider} forbids it ({said}): {variable} may lack the right"
        case _:
            return f"{provider} refuses ({status}): {said}"


@dataclass(slots=True)
class Roster:
    """The machines alive a moment ago, so that ten resources that look at once ask once."""

    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _at: float = -1e9
    _machines: tuple[Machine, ...] = ()

    async def machines(
        self, ask: Callable[[], Awaitable[tuple[Machine, ...]]], fresh_s: float, clock: Callable[[], float]
    ) -> tuple[Machine, ...]:
        """As they are, or were not longer than `fresh_s` ago."""
        async with self._lock:
            if clock() - self._at >= fresh_s:
                self._machines = await ask()
                self._at = clock()
            return self._machines

    def forget(self) -> None:
        """Something was ordered or ended."""
        self._at = -1e9


def named(machines: Sequence[Machine], name: str) -> Machine | None:
    """The one of that name; the first that was rented, if there should be two."""
    same = [machine for machine in machines if machine.name == name]
    return min(same, key=lambda machine: machine.rented_at or datetime.max.replace(tzinfo=UTC), default=None)


def of_stack(machines: Sequence[Machine], stack_id: str) -> list[Machine]:
    """Those whose name carries the stack's id (`infra.identity`)."""
    return [machine for machine in machines if machine.name.startswith(f"lp-{stack_id}-")]


@dataclass(frozen=True, slots=True)
class ListedCloud(ABC):
    """A cloud whose one list of machines answers what is there: the part of `Cloud` that such clouds share.

    A list that is `fresh_s` seconds old, by `clock`, answers once more.
    """

    wire: Wire
    fresh_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    seen: Roster = field(default_factory=Roster, compare=False)

    async def find(self, name: str) -> Machine | None:
        return named(await self.alive(), name)

    async def list(self, stack_id: str) -> Sequence[Machine]:
        return of_stack(await self.alive(), stack_id)

    async def alive(self) -> tuple[Machine, ...]:
        """Every machine of the account that is there, whosever it is."""
        return await self.seen.machines(self.listed, self.fresh_s, self.clock)

    @abstractmethod
    async def listed(self) -> tuple[Machine, ...]:
        """As the provider says now."""
