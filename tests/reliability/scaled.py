"""Two routers and two consumers on one PostgreSQL and one Redis behind nginx, and what dies there alone."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from router.queue.celery import TASK, Broker, celery_app, queue_name
from tests.integration.router.together import together
from tests.postgres import Postgres, postgres
from tests.redis_server import RedisServer, redis_server
from tests.reliability.chaos import Chaos, Fault, fleet_of
from tests.small_disk import small_disk

NAME = "chaos"
SHIM = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.step (by INTERVAL NOT NULL);
INSERT INTO chaos.step VALUES ('0 s');
GRANT USAGE ON SCHEMA chaos TO PUBLIC;
CREATE FUNCTION chaos.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
  AS 'SELECT pg_catalog.clock_timestamp() + by FROM chaos.step';
"""


@dataclass
class Scaled(Chaos):
    database: Postgres = field(kw_only=True)
    broker: RedisServer = field(kw_only=True)

    @property
    def faults(self) -> dict[str, Fault]:
        return super().faults | {
            "consumer killed": self.kill_consumer,
            "consumer frozen": self.freeze_consumer,
            "PostgreSQL killed": self.kill_database,
            "Redis killed": self.kill_broker,
            "Redis flushed": self.flush_broker,
            "delivered twice": self.deliver_again,
            "clock stepped": self.step_clock,
        }

    @property
    def store(self) -> object:
        return self.database

    async def sql(self, statement: str) -> str:
        async with self.alone(self.database):
            return await asyncio.to_thread(self.database.sql, statement, NAME)

    async def freeze_consumer(self) -> None:
        await self.freeze(self.draw.choice(self.house.consumers))

    async def kill_consumer(self) -> None:
        consumer = self.draw.choice(self.house.consumers)
        async with self.alone(consumer):
            await consumer.stop(signal.SIGKILL)
            await self.moment()
            async with self.alone(self.database):
                await consumer.start()

    async def kill_database(self) -> None:
        async with self.alone(self.database):
            await asyncio.to_thread(self.database.stop, signal.SIGKILL)
            await self.moment()
            await asyncio.to_thread(self.database.start)

    async def kill_broker(self) -> None:
        async with self.alone(self.broker):
            await asyncio.to_thread(self.broker.stop, signal.SIGKILL)
            await self.moment()
            await asyncio.to_thread(self.broker.start)

    async def flush_broker(self) -> None:
        async with self.alone(self.broker):
            await asyncio.to_thread(self.broker.flush)

    async def deliver_again(self) -> None:
        """Messages that nobody sent: as many as a broker that redelivers everything would bring."""

        mark = (await self.sql("SELECT value FROM facts")).strip()[:12]

        def send() -> None:
            app = celery_app(Broker(self.broker.url, f"letterpress:{mark}:"))
            for _ in range(30):
                app.send_task(TASK, args=("interactive",), queue=queue_name("interactive"), ignore_result=True)

        async with self.alone(self.broker):
            await asyncio.to_thread(send)

    async def step_clock(self) -> None:
        """The clock that all leases are measured by: an hour ahead, or back."""
        by = self.draw.choice(["1 hour", "-1 hour", "10 s", "-10 s"])
        await self.sql(f"UPDATE chaos.step SET by = by + '{by}'")  # noqa: S608 - one of ours

    def full_s(self) -> float:
        """It is the images'."""
        return self.draw.uniform(0.5, 2)


@asynccontextmanager
async def scaled(seed: int, away_s: float) -> AsyncIterator[Chaos]:
    async with AsyncExitStack() as held:
        database, broker = held.enter_context(postgres()), held.enter_context(redis_server())
        disk = None
        with suppress(pytest.skip.Exception):
            disk = held.enter_context(small_disk("16m"))
        await asyncio.to_thread(database.sql, f"CREATE DATABASE {NAME}")
        data = None if disk is None else disk.folder / "data"
        house = await held.enter_async_context(together(database.url(NAME), broker.url, data=data))
        await asyncio.to_thread(database.sql, SHIM, NAME)
        await asyncio.to_thread(database.sql, f"ALTER DATABASE {NAME} SET search_path = chaos, pg_catalog, public")
        fleet = await held.enter_async_context(fleet_of(house))
        yield Scaled(house, fleet, disk, random.Random(seed), away_s, database=database, broker=broker)
