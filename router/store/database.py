"""Connections and transactions: opens the database, brings its schema up to date, runs one function a transaction.

What a transaction does is a plain function of a SQLAlchemy `Connection` (`router.store.job_rows` and its
neighbours); this module gives it a connection, commits, and says in the words of `router.errors` what went
wrong.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, cast

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from router.errors import StoreUnavailableError

P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 10_000
"""How long SQLite waits for another process's transaction. Ours last milliseconds, a migration longer."""
READERS = 4
CACHE_KIB = 16_384
"""Of pages that each of SQLite's connections keeps, eight times its default: the index of a long queue fits."""
POSTGRES_CONNECTIONS = 16
"""That one process holds at most. A transaction takes milliseconds, so this many carry thousands a second;
Postgres allows 100 in all unless told otherwise, and several routers and consumers share one."""
POOL_WAIT_S = 10.0
"""How long a transaction waits for a free connection."""
POSTGRES_CONNECT_S = 5.0
POSTGRES_ANSWER_S = 30.0
"""Without an answer to one statement for so long, the way to the database counts as lost."""
POSTGRES_SETTINGS = {
    "application_name": "letterpress router",
    "lock_timeout": "10s",
    # A router that is stopped (SIGSTOP, a sleeping laptop) in mid-transaction must not hold rows for ever.
    "idle_in_transaction_session_timeout": "30s",
    "timezone": "UTC",
}
MIGRATION_LOCK = 7_205_759_403
"""Of Postgres's advisory locks: routers that start together migrate one after the other."""
SYNCHRONOUS, WANTED, SYNCED = "letterpress_synchronous", "letterpress_wanted", "FULL"
"""What the writer's connection was told last; what it is to be told; and what it is told first."""
HIDE_PARAMETERS = True
"""Errors are logged, and say their statement's parameters otherwise: prompts, a worker's token."""


class Database:
    """One database, open. Reads run side by side; on SQLite, writes take turns, on Postgres they do not.

    A connection that was lost is an error for who used it and is replaced for the next: a database that was
    restarted needs nothing from us.

    A transaction that has begun runs to its end even if whoever asked for it is cancelled: half-way is not
    a state to leave a database in, and SQLite has but one writer to block.
    """

    def __init__(self, readers: _Side, writers: _Side, unsynced: _Side) -> None:
        self._readers = readers
        self._writers = writers
        self._unsynced = unsynced
        self._running: set[asyncio.Future[Any]] = set()

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to `sqlite+aiosqlite:///file` (made, 0600, if missing) or `postgresql+asyncpg://…`, and migrate it.

        Raises StoreUnavailableError if that cannot be done.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise StoreUnavailableError("the database's URL cannot be read; see the router's settings") from error
        match parsed.drivername:
            case "sqlite+aiosqlite":
                database = cls(*_sqlite(parsed))
            case "postgresql+asyncpg":
                side = _OnLoop(_postgres(parsed))
                database = cls(side, side, side)
            case other:
                raise StoreUnavailableError(
                    f"the router does not keep its promises in {other}; "
                    "use sqlite+aiosqlite:///path or postgresql+asyncpg://user@host/name"
                )
        try:
            await database.write(_migrate)
        except BaseException:  # its connections are closed however the opening ends; it is raised again
            await database.close()
            raise
        return database

    @property
    def in_order(self) -> bool:
        """Whether writes stand in one line, from the very moment in which they are asked for."""
        return isinstance(self._writers, _InThreads)

    async def read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(connection, …)` in a transaction that changes nothing."""
        return await self._run(self._readers, lambda connection: work(connection, *args, **kwargs))

    async def write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(connection, …)` in a transaction, committed when it returns and undone when it raises."""
        return await self._run(self._writers, lambda connection: work(connection, *args, **kwargs))

    async def write_unsynced(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, for what a power cut may take back as if it had never been, and the next `write` makes sure.

        A killed process takes nothing back. On Postgres, which outlives its clients and may end alone, it is `write`.
        """
        return await self._run(self._unsynced, lambda connection: work(connection, *args, **kwargs))

    async def close(self) -> None:
        """Let what runs end, then close every connection."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._readers.dispose()
        await self._writers.dispose()

    async def _run(self, side: _Side, work: Callable[[Connection], T]) -> T:
        running = side.begin(work)
        self._running.add(running)
        running.add_done_callback(self._forget)
        with _in_words_of_ours(side.url):
            return await asyncio.shield(running)

    def _forget(self, ended: asyncio.Future[Any]) -> None:
        self._running.discard(ended)
        if not ended.cancelled():
            ended.exception()  # seen, also when whoever asked is gone


class _Side(Protocol):
    """Connections, and how one transaction is run on one of them."""

    @property
    def url(self) -> URL: ...

    def begin(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Goes on to its end, whoever waits for it or does not."""
        ...

    async def dispose(self) -> None: ...


class _OnLoop:
    """A server's answers are waited for on the event loop, statement by statement."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.url = engine.url

    def begin(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        return asyncio.create_task(self._transact(work))

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def dispose(self) -> None:
        await self._engine.dispose()


class _InThreads:
    """SQLite answers in microseconds, and in our own process: a whole transaction goes to a thread and comes back
    once. Statement by statement, as an async driver does it, the way there and back is most of what it takes."""

    def __init__(self, threads: _Threads, synchronous: str = SYNCED) -> None:
        self._threads, self._synchronous = threads, synchronous
        self.url = threads.engine.url

    def begin(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads.pool, self._transact, work)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        connection = self._threads.connection()
        connection.info[WANTED] = self._synchronous
        with connection.begin():
            return work(connection)

    async def dispose(self) -> None:
        await asyncio.to_thread(self._threads.close)


class _Threads:
    """Each keeps its connection: to take one from a pool and to give it back takes twice as long as to begin and to
    commit."""

    def __init__(self, engine: Engine, count: int, name: str) -> None:
        self.engine = engine
        self.pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._own = threading.local()
        self._all: list[Connection] = []

    def connection(self) -> Connection:
        """The calling thread's. One that was lost is replaced when it next begins."""
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self.engine.connect()
            self._all.append(connection)
        return connection

    def close(self) -> None:
        self.pool.shutdown()
        for connection in self._all:
            connection.close()
        self.engine.dispose()


@contextmanager
def _in_words_of_ours(url: URL) -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError, ProgrammingError):
        raise  # the database is well; what it was asked was wrong
    except (
        *(DBAPIError, PoolTimeoutError, OSError, sqlite3.OperationalError),
        *(asyncpg.PostgresError, asyncpg.InterfaceError),
    ) as error:
        # SQLite's own comes from a transaction that cannot begin, asyncpg's from a Postgres that refuses the connection
        # (it starts, it stops, it is full).
        raise StoreUnavailableError(
            f"the database {_named(url)} did not do as asked: {_cause(error)}; look at its disk, its locks and its log"
        ) from error


def _named(url: URL) -> str:
    """Which database, without its password."""
    where = url.host or url.query.get("host") or ""
    return f"{url.database} at {where}" if where else str(url.database)


def _cause(error: Exception) -> str:
    cause: BaseException = getattr(error, "orig", None) or error
    # SQLAlchemy puts the driver's class before the driver's words; the words are for people.
    cause = cause.__cause__ or cause
    return str(cause) or type(cause).__name__


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _postgres(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=POSTGRES_CONNECTIONS,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        pool_pre_ping=True,
        hide_parameters=HIDE_PARAMETERS,
        connect_args={
            "timeout": POSTGRES_CONNECT_S,
            "command_timeout": POSTGRES_ANSWER_S,
            "server_settings": POSTGRES_SETTINGS,
        },
    )


def _sqlite(url: URL) -> tuple[_Side, _Side, _Side]:
    """Readers, and one writer, synced and not: SQLite has one anyway, and a queue in our process is fair and quick
    where its own waiting polls."""
    if not url.database or url.database == ":memory:":
        raise StoreUnavailableError("the router keeps its promises in a file: use sqlite+aiosqlite:///path/to/file")
    try:
        # SQLite gives its -wal and -shm the same mode.
        Path(url.database).touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f"the database {url.database} cannot be made: {error.strerror}") from error
    ours = url.set(drivername="sqlite+pysqlite")
    readers, writer = (
        create_engine(ours, poolclass=QueuePool, pool_size=size, max_overflow=0, hide_parameters=HIDE_PARAMETERS)
        for size in (READERS, 1)
    )
    for engine, begin in ((readers, _begin_reading), (writer, _begin_writing)):
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", begin)
    thread = _Threads(writer, 1, "sqlite-writer")
    return (
        _InThreads(_Threads(readers, READERS, "sqlite-reader")),
        _InThreads(thread),
        _InThreads(thread, "NORMAL"),
    )


def _configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own idea of when a transaction begins is too late for a lock: we say BEGIN ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        # A committed job survives a power cut, not only a crash: with NORMAL, the last commits of a WAL may not.
        f"synchronous = {SYNCED}",
        "foreign_keys = ON",
        f"cache_size = -{CACHE_KIB}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_reading(connection: Connection) -> None:
    _driver(connection).execute("BEGIN")


def _begin_writing(connection: Connection) -> None:
    driver, wanted = _driver(connection), connection.info[WANTED]
    if connection.info.get(SYNCHRONOUS, SYNCED) != wanted:
        driver.execute(f"PRAGMA synchronous = {wanted}")
        connection.info[SYNCHRONOUS] = wanted
    driver.execute("BEGIN IMMEDIATE")


def _driver(connection: Connection) -> sqlite3.Connection:
    """Every transaction begins through it: SQLAlchemy's way to one plain word takes ten times as long. One that could
    be neither committed nor undone (a disk that failed in between) is undone here: its connection is kept."""
    driver = cast("sqlite3.Connection", connection.connection.dbapi_connection)
    if driver.in_transaction:
        driver.rollback()
    return driver
