"""Databases for every test that asks for one, its own and mostly of both kinds; and Triton's interpreter."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.store.clock import database_clock
from tests.dealing import pytest_xdist_make_scheduler
from tests.postgres import FAST, Postgres, postgres
from tests.redis_server import RedisServer, redis_server
from tests.stores import opened_at, url

__all__ = ["pytest_xdist_make_scheduler"]

if not Path("/dev/nvidiactl").exists():
    # Where there is no GPU, kernels run in Triton's interpreter. It is chosen when Triton is first imported, and
    # whoever imports torch may do that.
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has begun the suite in the background. Programs that tests start would inherit that, and never hear of
    # the Ctrl-C that is tried on them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

NewDatabase = Callable[[], str]
"""Makes an empty database of the router's and returns its URL."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One cluster for all tests that do not harm it."""
    with postgres(**FAST) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Postgres) -> str:
    """The name of a database that is migrated already, to be copied: faster than to migrate each."""

    async def migrate() -> None:
        async with opened_at(postgres_server.url("migrated"), database_clock):
            pass

    postgres_server.sql("CREATE DATABASE migrated")
    asyncio.run(migrate())
    return "migrated"


@pytest.fixture
def postgres_url(postgres_server: Postgres, postgres_template: str) -> str:
    """A PostgreSQL database of the test's own."""
    return postgres_server.create(postgres_template)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for all tests that do not harm it; each database's routers have keys of their own there."""
    with redis_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewDatabase:
    """The test runs twice: on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return lambda: url(tmp_path_factory.mktemp("db"))
    server: Postgres = request.getfixturevalue("postgres_server")
    template: str = request.getfixturevalue("postgres_template")
    return lambda: server.create(template)


@pytest.fixture
def database_url(new_database: NewDatabase) -> str:
    """One database of the kind that `new_database` makes."""
    return new_database()
