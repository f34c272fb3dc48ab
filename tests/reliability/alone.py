"""The stack as it is by default: one router that drives its workers, on SQLite, behind nginx. Database and images
lie on one small disk."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.router.together import together
from tests.reliability.chaos import Chaos, fleet_of
from tests.small_disk import small_disk


@dataclass
class Alone(Chaos):
    database: Path = field(kw_only=True)

    @property
    def store(self) -> object:
        return self.disk

    async def sql(self, statement: str) -> str:
        def asked() -> str:
            with closing(sqlite3.connect(self.database, timeout=30)) as database:
                rows = database.execute(statement).fetchall()
            return "\n".join("|".join(map(str, row)) for row in rows)

        return await asyncio.to_thread(asked)

    def full_s(self) -> float:
        """Nothing can be renewed, ended or taken on meanwhile."""
        return self.past_a_lease()


@asynccontextmanager
async def alone(seed: int, away_s: float) -> AsyncIterator[Chaos]:
    async with AsyncExitStack() as held:
        disk = None
        with suppress(pytest.skip.Exception):
            disk = held.enter_context(small_disk("32m"))
        data = None if disk is None else disk.folder / "data"
        house = await held.enter_async_context(together(None, None, data=data, routers=1, consumers=0))
        fleet = await held.enter_async_context(fleet_of(house))
        database = Path(house.routers[0].environment["LETTERPRESS_ROUTER_DATA_DIR"]) / "router.db"
        yield Alone(house, fleet, disk, random.Random(seed), away_s, database=database)
