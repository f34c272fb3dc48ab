"""What this computer's processes have lately asked of a provider, and the offers that turned out to be empty.

Providers count requests by account or address, not by process: a deploy, a watch and a status at once share
one count. It lies in one small file a provider, under a lock; times in it are seconds since the epoch, for no
other clock is shared. A file that is lost costs a refused request, nothing else.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `requests` within any `window_s` seconds."""

    requests: int
    window_s: float


class Book(BaseModel):
    """The file: when each kind of request was made, until when the provider wants none, which offers are blocked."""

    taken: dict[str, list[float]] = Field(default_factory=dict)
    closed_until: dict[str, float] = Field(default_factory=dict)
    blocked_until: dict[str, float] = Field(default_factory=dict)

    def take(self, kind: str, limit: Limit, now: float) -> float:
        """Note a request and return 0, or note nothing and return the seconds to wait before the next try."""
        recent = [at for at in self.taken.get(kind, []) if now - limit.window_s < at <= now]
        wait = max(0.0, self.closed_until.get(kind, 0.0) - now)
        if len(recent) >= limit.requests:
            wait = max(wait, recent[-limit.requests] + limit.window_s - now)
        self.taken[kind] = recent if wait > 0 else [*recent, now]
        return wait

    def blocked(self, now: float) -> frozenset[str]:
        self.blocked_until = {offer: until for offer, until in self.blocked_until.items() if until > now}
        return frozenset(self.blocked_until)


@dataclass(frozen=True, slots=True)
class Quota:
    """The count of one provider. `limits` are by kind of request; a kind without one is not counted."""

    file: Path
    limits: Mapping[str, Limit]
    clock: Callable[[], float] = time.time

    async def take(self, kind: str) -> float:
        """0 if a request may be made now, and is counted; otherwise the seconds until one may."""
        limit = self.limits.get(kind)
        return await self._change(lambda book: book.take(kind, limit, self.clock())) if limit else 0.0

    async def close(self, kind: str, for_s: float) -> None:
        """The provider said itself for how long it takes none."""
        until = self.clock() + for_s

        def note(book: Book) -> None:
            book.closed_until[kind] = max(until, book.closed_until.get(kind, 0.0))

        await self._change(note)

    async def block(self, offer: str, for_s: float) -> None:
        """Offer it no more for so long."""
        until = self.clock() + for_s

        def note(book: Book) -> None:
            book.blocked_until[offer] = until

        await self._change(note)

    async def blocked(self) -> frozenset[str]:
        return await self._change(lambda book: book.blocked(self.clock()))

    async def _change(self, change: Callable[[Book], T]) -> T:
        """In a thread: another process may hold the file for a moment."""

        def locked() -> T:
            with self._open() as book:
                return change(book)

        return await asyncio.to_thread(locked)

    @contextmanager
    def _open(self) -> Iterator[Book]:
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                book = Book.model_validate_json(file.read() or b"{}")
            except ValidationError:
                book = Book()  # torn by a machine that went down: a count is nothing to stop for
            yield book
            file.seek(0)
            file.truncate()
            file.write(book.model_dump_json().encode())
