"""Real stores for tests, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import BigInteger, ColumnElement, literal

from router.jobs import Image
from router.store.clock import Clock
from router.store.sql import SqlStore
from worker.contract import GenerationRequest, Timings

DAWN = 1_800_000_000_000
NO_TIME = Timings(queued=0, text=0, denoise=0, decode=0, encode=0, total=0)
IMAGE = Image(path="aa/image.png", sha256="0" * 64, bytes=3, media_type="image/png")


@dataclass
class SteeredClock:
    """A `router.store.clock.Clock` that stands still until it is moved."""

    ms: int = DAWN

    def __call__(self) -> ColumnElement[int]:
        return literal(self.ms, BigInteger())

    def advance(self, ms: int) -> None:
        self.ms += ms


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'router.sqlite'}"


def opened_store(folder: Path, clock: Clock) -> AbstractAsyncContextManager[SqlStore]:
    """The store on SQLite in `folder`."""
    return opened_at(url(folder), clock)


@asynccontextmanager
async def opened_at(database_url: str, clock: Clock) -> AsyncIterator[SqlStore]:
    store = await SqlStore.open(database_url, clock)
    try:
        yield store
    finally:
        await store.close()


def request(prompt: str = "a red fox", seed: int = 1, steps: int | None = None) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, width=256, height=256, seed=seed, steps=steps)
