"""Answers that may be some seconds old: asked for once, however many want one at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fresh(Generic[T]):
    """`ask` answers for a name. An answer is good for `fresh_s` seconds of `monotonic`, one that `says` nothing and a
    failure for nobody after."""

    def __init__(
        self,
        ask: Callable[[str], Awaitable[T]],
        fresh_s: float,
        monotonic: Callable[[], float],
        says: Callable[[T], bool] = lambda _: True,
    ) -> None:
        self._ask, self._fresh_s, self._monotonic, self._says = ask, fresh_s, monotonic, says
        self._known: dict[str, tuple[T, float]] = {}
        self._asking: dict[str, asyncio.Task[T]] = {}

    async def of(self, name: str) -> T:
        """Raises what `ask` raises. Who is cancelled while waiting ends nothing for the others."""
        known = self._known.get(name)
        if known is not None and self._monotonic() - known[1] < self._fresh_s:
            return known[0]
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._answer(name))
            asking.add_done_callback(lambda ended: self._forget(name, ended))
        return await asyncio.shield(asking)

    async def _answer(self, name: str) -> T:
        answer = await self._ask(name)
        if self._says(answer):
            self._known[name] = answer, self._monotonic()
        return answer

    def _forget(self, name: str, ended: asyncio.Task[T]) -> None:
        del self._asking[name]
        if not ended.cancelled():
            ended.exception()  # seen, also when everybody who asked is gone
