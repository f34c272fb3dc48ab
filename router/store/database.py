"""Connections and transactions: opens the database, brings its schema up to date, runs one function a transaction.

What a transaction does is a plain function of a SQLAlchemy `Connection` (`router.store.job_rows` and its
neighbours); this module gives it a connection, commits, and says in the words of `router.errors` what went
wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from router.errors import StoreUnavailableError

P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 10_000
"""How long SQLite waits for another process's transaction. Ours last milliseconds, a migration longer."""
READERS = 4
HIDE_PARAMETERS = True
"""Errors are logged, and say their statement's parameters otherwise: prompts, a worker's token."""


class Database:
    """One database, open. Reads run side by side; on SQLite, writes take turns.

    A transaction that has begun runs to its end even if whoever asked for it is cancelled: half-way is not
    a state to leave a database in, and SQLite has but one writer to block.
    """

    def __init__(self, readers: AsyncEngine, writers: AsyncEngine) -> None:
        self._readers = readers
        self._writers = writers
        self._running: set[asyncio.Task[object]] = set()

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to `sqlite+aiosqlite:///file` (made, 0600, if missing) or another async URL, and migrate it.

        Raises StoreUnavailableError if that cannot be done.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise StoreUnavailableError("the database's URL cannot be read; see the router's settings") from error
        if parsed.get_backend_name() == "sqlite":
            database = cls(*_sqlite(parsed))
        else:
            engine = create_async_engine(parsed, pool_pre_ping=True, hide_parameters=HIDE_PARAMETERS)
            database = cls(engine, engine)
        try:
            await database.write(_migrate)
        except BaseException:  # its connections are closed however the opening ends; it is raised again
            await database.close()
            raise
        return database

    async def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(connection, …)` in a transaction that changes nothing."""
        return await self._run(self._readers, lambda connection: work(connection, *args, **kwargs))

    async def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(connection, …)` in a transaction, committed when it returns and undone when it raises."""
        return await self._run(self._writers, lambda connection: work(connection, *args, **kwargs))

    async def close(self) -> None:
        """Let what runs end, then close every connection."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._readers.dispose()
        await self._writers.dispose()

    async def _run(self, engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
        task = asyncio.create_task(_transact(engine, work))
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when whoever asked is gone


async def _transact(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    except (DataError, IntegrityError, ProgrammingError):
        raise  # the database is well; what it was asked was wrong
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise StoreUnavailableError(
            f"the database {engine.url.database} did not do as asked: {cause}; look at its disk, its locks and its log"
        ) from error


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _sqlite(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    """Readers, and a pool of one writer: SQLite has one anyway, and a queue in our process is fair and quick
    where its own waiting polls."""
    if not url.database or url.database == ":memory:":
        raise StoreUnavailableError("the router keeps its promises in a file: use sqlite+aiosqlite:///path/to/file")
    try:
        # SQLite gives its -wal and -shm the same mode.
        Path(url.database).touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f"the database {url.database} cannot be made: {error.strerror}") from error
    readers = create_async_engine(url, pool_size=READERS, max_overflow=0, hide_parameters=HIDE_PARAMETERS)
    writers = create_async_engine(url, pool_size=1, max_overflow=0, hide_parameters=HIDE_PARAMETERS)
    for engine, begin in ((readers, "BEGIN"), (writers, "BEGIN IMMEDIATE")):
        event.listen(engine.sync_engine, "connect", _configure)
        event.listen(engine.sync_engine, "begin", _beginner(begin))
    return readers, writers


def _configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own idea of when a transaction begins is too late for a lock: we say BEGIN ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        # A committed job survives a power cut, not only a crash: with NORMAL, the last commits of a WAL may not.
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _beginner(statement: str) -> Callable[[Connection], None]:
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin
